"""Tuning on a user's own tensors: they are what is measured, and what does not fit is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_backend import FakeBackend, FakeKernel, installed
from typer.testing import CliRunner

from attnc.autotune.bench import measure
from attnc.autotune.given import digest_of
from attnc.autotune.problem import problem_from_json
from attnc.cli import app
from attnc.cli.tune import Wanted, problems
from attnc.errors import ArgumentError
from attnc.ir.reader import read_program
from attnc.jit import Checked

SPEC = """attention packed {
    input doc: int[B, N]
    param c: real = 1.0
    mask causal and doc[b, i] == doc[b, j]
    score dot(q, k) * c
}"""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    monkeypatch.setenv("ATTNC_TUNING_DIR", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packed.attn").write_text(SPEC)
    with installed(monkeypatch, tmp_path / "cache") as made:
        yield made


def call(**changes: Any) -> dict[str, Any]:
    q, k, v = (torch.randn(2, heads, 40, 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    doc = (torch.arange(40, dtype=torch.int32) // 7).expand(2, 40)
    return {"q": q, "k": k, "v": v, "doc": doc, "c": 0.5, **changes}


def wanted(tensors: Path, *shapes: str) -> Wanted:
    return Wanted("packed.attn", {}, "cpu", None, shapes, [], ["q"], False, tensors=tensors)


def test_the_call_of_a_file_is_what_is_measured(
    backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = call()
    torch.save(given, tmp_path / "call.pt")
    forward, _, backward = problems(wanted(tmp_path / "call.pt"))
    assert forward.sizes == {"B": 2, "H": 4, "G": 2, "M": 40, "N": 40}
    assert (forward.widths, forward.workload.dtype, forward.workload.inputs) == ((8, 8), "bf16", ("i32",))
    assert (backward.direction, backward.tensors) == ("backward", forward.tensors)
    seen: list[tuple[Any, ...]] = []
    run = FakeKernel.run

    def recording(self: FakeKernel, *arguments: Any, **more: Any) -> None:
        seen.append(arguments)
        run(self, *arguments, **more)

    monkeypatch.setattr(FakeKernel, "run", recording)
    sent = problem_from_json(forward.to_json(), lambda text: Checked.of(read_program(text)))
    assert len(measure(sent, [{}, {"tile": 16, "way": "down"}], 3, 0.1)) == 2
    for q, k, v, inputs, numbers, *_ in seen:
        assert all(torch.equal(a, given[name]) for name, a in zip("qkv", (q, k, v), strict=True))
        assert torch.equal(inputs[0], given["doc"])
        assert numbers == [0.5]
    first = digest_of(forward.tensors)
    torch.save(call(), tmp_path / "call.pt")
    assert digest_of(forward.tensors) != first


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("pwned").touch, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: [1], "save a dict of q, k, v"),
        (lambda: call(q=1.0), "save a dict of q, k, v"),
        (lambda: call(dok=torch.zeros(2)), "unknown argument `dok`"),
        (lambda: call(doc=torch.zeros(2, 3, dtype=torch.int32)), "found shape"),
        (lambda: call(doc=torch.zeros(2, 40)), "doc"),
        (lambda: call(v=torch.randn(2, 2, 40, 8)), "must have the dtype of q"),
        (lambda: call(doc=Evil()), "holds no tensors"),
    ],
)
def test_what_does_not_fit_is_told(
    content: Callable[[], Any], message: str, backend: FakeBackend, tmp_path: Path
) -> None:
    torch.save(content(), tmp_path / "call.pt")
    with pytest.raises(ArgumentError, match=message):
        problems(wanted(tmp_path / "call.pt"))
    assert not (tmp_path / "pwned").exists()


def test_sizes_are_said_once(backend: FakeBackend, tmp_path: Path) -> None:
    torch.save(call(), tmp_path / "call.pt")
    with pytest.raises(ArgumentError, match="leave --shapes and --dtype out"):
        problems(wanted(tmp_path / "call.pt", "N=40"))
    done = CliRunner().invoke(app, ["tune", "packed.attn", "-t", "cpu", "--tensors", "missing.pt"])
    assert done.exit_code == 2
    assert "missing.pt" in done.output
    (tmp_path / "torn.pt").write_bytes((tmp_path / "call.pt").read_bytes()[:50])
    assert CliRunner().invoke(app, ["tune", "packed.attn", "-t", "cpu", "--tensors", "torn.pt"]).exit_code == 2
