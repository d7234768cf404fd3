"""Keys of real requests: whatever decides which config is fastest changes them, and what does not does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_backend import FakeBackend, installed

from attnc.autotune import bucket, hardware, key
from attnc.autotune.explain import nearest, sentences
from attnc.autotune.key import Key, key_of, templates
from attnc.autotune.problem import Problem
from attnc.backends.protocol import Target, Workload
from attnc.grammar.source import Source
from attnc.jit import recall_spec
from attnc.spec import Spec

TEXT = "attention one { const W: int = 8  input slope: real[H]  mask causal and i - j < W  score dot(q, k) * slope[h] }"
SIZES = {"B": 1, "H": 2, "G": 2, "M": 100, "N": 100}
USUAL: dict[str, Any] = {"direction": "forward", "wants": (), "widths": (8, 8), "sizes": SIZES}
WORKLOAD = Workload("f32", ("f32",), False)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    with installed(monkeypatch, tmp_path / "cache") as made:
        yield made


def made(text: str = TEXT, constants: dict[str, Any] | None = None, **changes: Any) -> Key:
    workload = replace(WORKLOAD, **{name: changes.pop(name) for name in list(changes) if hasattr(WORKLOAD, name)})
    checked = recall_spec(Spec(Source("<test>", text), None, constants or {}))
    problem = Problem(checked, "fake", Target("cpu"), workload=workload, **{**USUAL, **changes})
    return key_of(problem.request())


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("workload: spec", {"text": TEXT.replace("<", "<=")}),
        ("workload: spec", {"constants": {"W": 9}}),
        ("workload: dtype", {"dtype": "bf16"}),
        ("workload: inputs", {"inputs": ("bf16",)}),
        ("workload: lse", {"lse": True}),
        ("workload: widths", {"widths": (16, 8)}),
        ("workload: widths", {"widths": (8, 16)}),
        ("workload: bucket.heads", {"sizes": {**SIZES, "B": 9}}),
        ("workload: bucket.rows", {"sizes": {**SIZES, "M": 300}}),
        ("workload: bucket.keys", {"sizes": {**SIZES, "N": 300}}),
        ("workload: bucket.ratio", {"sizes": {**SIZES, "G": 1}}),
        ("workload: direction", {"direction": "backward", "wants": ("q", "k", "v")}),
        ("workload: saved", {"wants": ("q", "k", "v")}),
    ],
)
def test_what_a_call_is_like_is_in_its_key(field: str, change: dict[str, Any], backend: FakeBackend) -> None:
    other = made(**change)
    assert other.digest != made().digest
    near = nearest(made(), [other])
    assert near is not None
    assert any(line.startswith(f"{field} is ") for line in sentences(near)), sentences(near)


def test_gradients_and_their_order_are_in_the_key(backend: FakeBackend) -> None:
    backward: dict[str, Any] = {"direction": "backward", "wants": ("q", "k", "v")}
    keys = [made(**backward), made(**backward, unordered=True), made(direction="backward", wants=("q",))]
    assert len({one.digest for one in keys}) == 3
    assert [x[1] for x in key.differences(keys[0], keys[1])] == ["deterministic"]
    assert "wants" in [x[1] for x in key.differences(keys[0], keys[2])]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("space: version", lambda patch: patch.setattr(FakeBackend, "spaces", 2)),
        ("space: templates", lambda patch: patch.setattr(FakeBackend, "families", ("triton",))),
        ("toolchain: codegen", lambda patch: patch.setattr(FakeBackend, "codegen", 2)),
        ("toolchain: compiler", lambda patch: patch.setattr(FakeBackend, "toolchain", lambda self, target: "fake 2")),
        ("policy: version", lambda patch: patch.setattr(key, "POLICY", 99)),
        ("workload: bucket_version", lambda patch: patch.setattr(bucket, "VERSION", 99)),
        ("hardware: cores", lambda patch: patch.setattr(key, "hardware_of", lambda _: {**here(), "cores": 999})),
        ("hardware: flags", lambda patch: patch.setattr(key, "hardware_of", lambda _: {**here(), "flags": []})),
        ("hardware: caches", lambda patch: patch.setattr(key, "hardware_of", lambda _: {**here(), "caches": []})),
    ],
)
def test_what_makes_and_runs_kernels_is_in_the_key(
    field: str, change: Callable[[Any], None], backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made()
    change(monkeypatch)
    near = nearest(made(), [before])
    assert near is not None
    assert [line.split(" is ")[0] for line in sentences(near)] == [field]


def here() -> dict[str, Any]:
    return hardware.hardware_of(Target("cpu"))


@pytest.mark.parametrize(
    "change",
    [
        {"text": TEXT.replace("slope", "tilt").replace("one", "two")},
        {"text": TEXT.replace("causal and i - j < W", "i - j < W and j <= i") + "  # spelled otherwise"},
        {"sizes": {**SIZES, "M": 65, "N": 256}},
        {"sizes": {**SIZES, "B": 4}},
    ],
)
def test_what_does_not_matter_is_not_in_the_key(change: dict[str, Any], backend: FakeBackend) -> None:
    assert made(**change).digest == made().digest


def test_every_family_of_templates_counts(tmp_path: Path) -> None:
    from attnc.backends.triton import TritonBackend
    from attnc.backends.tvm import TvmBackend

    assert set(TritonBackend.families) == {"triton", "hopper"}
    assert TvmBackend.families == ("tvm",)
    digests = [templates(families) for families in (("triton",), ("hopper",), ("triton", "hopper"), ("tvm",), ())]
    assert len(set(digests)) == 5
