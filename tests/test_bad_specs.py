"""Malformed specs: each renders as it is pinned beside it.

After a change of wording, pin again with ``ATTNC_PIN=1 python -m pytest tests/test_bad_specs.py`` and read the diff.
"""

import json
import os
import re
from pathlib import Path

import pytest

from attnc.check import check
from attnc.grammar import Source, SpecError, render, to_json

BAD = Path(__file__).parent / "bad"
SPECS = sorted(BAD.glob("*.attn"))


def errors_of(path: Path) -> SpecError:
    """The errors of a spec; a first line ``# constants: W=2.5`` or ``# attention: NAME`` says how it is loaded."""
    text = path.read_text(encoding="utf-8")
    given = re.match(r"# constants: (\w+)=(\S+)", text)
    name = re.match(r"# attention: (\w+)", text)
    constants = {given[1]: float(given[2]) if re.search(r"[.n]", given[2]) else int(given[2])} if given else {}
    with pytest.raises(SpecError) as caught:
        check(Source(str(path.relative_to(Path.cwd())), text), name[1] if name else None, constants)
    return caught.value


@pytest.fixture(autouse=True)
def _in_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_bad_spec_renders_as_pinned(path: Path) -> None:
    found = render(errors_of(path).diagnostics).replace(str(BAD) + os.sep, "") + "\n"
    pinned = path.with_suffix(".txt")
    if os.environ.get("ATTNC_PIN"):
        pinned.write_text(found, encoding="utf-8")
    assert found == pinned.read_text(encoding="utf-8")


def test_there_are_enough_of_them_and_no_pin_without_a_spec() -> None:
    assert len(SPECS) >= 45
    assert {path.stem for path in SPECS} == {path.stem for path in BAD.glob("*.txt")}


def test_every_code_has_a_spec() -> None:
    root = Path(__file__).parent.parent
    sources = [*(root / "grammar").glob("*.py"), *(root / "attnc" / "check").glob("*.py")]
    raised = {code for path in sources for code in re.findall(r"\"(E\d{3})\"", path.read_text(encoding="utf-8"))}
    pinned = {code for path in BAD.glob("*.txt") for code in re.findall(r"error\[(E\d{3})\]", path.read_text("utf-8"))}
    assert raised - pinned == {"E503", "E901"}, "a file that cannot be read and a text too large are tested elsewhere"


@pytest.mark.parametrize("path", SPECS[::10], ids=lambda path: path.stem)
def test_json_says_the_same(path: Path) -> None:
    errors = errors_of(path)
    for found, made in zip(json.loads(to_json(errors.diagnostics)), errors.diagnostics, strict=True):
        assert (found["code"], found["message"], found["line"]) == (made.code, made.message, made.span.line)


def test_colour_changes_nothing_but_colour() -> None:
    errors = errors_of(BAD / "several_errors.attn")
    coloured = render(errors.diagnostics, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render(errors.diagnostics)
