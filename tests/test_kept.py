"""Programs and derived backwards in the cache on disk: text that comes back whole, and runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from strategies import programs

from attnc import cache, kept
from attnc.analyse.gradient.reverse import NotDifferentiable
from attnc.check import check
from attnc.compiler import derive_backward, specialize_program
from attnc.grammar.diagnostic import SpecError
from attnc.grammar.source import Source
from attnc.ir.program import Body, Program
from attnc.ir.reader import Unreadable

ROOT = Path(__file__).resolve().parent.parent
SPECS = sorted((ROOT / "specs").rglob("*.attn"))


def attentions(path: Path) -> Iterator[Program]:
    text = path.read_text()
    for line in text.splitlines():
        if line.startswith("attention "):
            yield check(Source(str(path), text), line.split()[1], {}, (path.parent,))


def bodies(program: Program) -> list[Body]:
    return [program.body, *(body for _, body in program.branches)]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_comes_back_with_its_spans_and_its_backward(path: Path) -> None:
    for program in attentions(path):
        found = kept.read(kept.write((program, ("a text", (0, 1)))))
        assert found == (program, ("a text", (0, 1)))
        assert found[0].spans == program.spans
        routes = [[route.span for route in body.routes] for body in bodies(found[0])]
        assert routes == [[route.span for route in body.routes] for body in bodies(program)]
        for widths in ((64, 64), (192, 128), (576, 512)):
            try:
                backward = derive_backward(specialize_program(program, widths))
            except SpecError:
                continue
            assert kept.read(kept.write(backward)) == backward


@settings(max_examples=60)
@given(programs())
def test_random_programs_and_their_backwards_come_back(program: Program) -> None:
    assert kept.read(kept.write(program)) == program
    try:
        backward = derive_backward(specialize_program(program, (8, 4)))
    except (SpecError, NotDifferentiable):
        return
    assert kept.read(kept.write(backward)) == backward


GOOD = kept.write(check(Source("<test>", "attention one { mask causal }")))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: {"__reduce__": ["os.system", "true"]},
        lambda found: found | {"value": {"Popen": ["true"]}},
        lambda found: found | {"value": {"Program": []}},
        lambda found: found | {"value": {"=": "__import__('os').system('true')"}},
        lambda found: found | {"value": {"declared": "nobody"}},
        lambda found: found | {"lines": ["%0 = %1"]},
        lambda found: [found],
    ],
)
def test_nothing_but_declared_classes_is_made(spoil: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        kept.read(json.dumps(spoil(json.loads(GOOD))))


def test_what_is_of_another_type_is_not_kept() -> None:
    with pytest.raises(TypeError, match="Path is not kept"):
        kept.write((Path("a"),))
    with pytest.raises(Unreadable):
        kept.read("{}")


def test_what_was_kept_is_not_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    made: list[int] = []

    def make() -> dict[str, int | str]:
        made.append(1)
        return {"tile": 64, "way": "down"}

    for _ in range(2):
        assert cache.remember("a", make) == {"tile": 64, "way": "down"}
    assert len(made) == 1
    path = tmp_path / "programs" / "a"
    whole = path.read_bytes()
    for data in (b"", whole[:-5], whole.replace(b"64", b"32"), b"\x80\x04." * 9):
        path.write_bytes(data)
        assert cache.remember("a", make) == {"tile": 64, "way": "down"}
    assert len(made) == 5


def test_the_product_reads_no_pickle() -> None:
    """Neither by itself nor through torch: what is loaded is text, machine code, or tensors."""
    for folder in ("attnc", "autotune", "attnc_tuned", "backends", "grammar", "templates"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert "import pickle" not in text, path
            assert "cloudpickle" not in text, path
            assert text.count("torch.load(") == text.count("weights_only=True"), path
