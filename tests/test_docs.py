"""What the documents show is true: specs check, Python parses, links lead somewhere, files named exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnc.check import check
from attnc.grammar import std_source
from attnc.grammar.source import Source

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> Iterator[object]:
    """The fenced blocks of one language in all documents."""
    for path in DOCUMENTS:
        for number, text in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        ):
            yield pytest.param(text, id=f"{path.name}-{number}")


@pytest.mark.parametrize("text", list(blocks("attn")))
def test_specs_in_documents(text: str) -> None:
    names = re.findall(r"^attention (\w+)", text, re.MULTILINE)
    assert names
    for name in names:
        assert check(Source("document", text), name, {}, ()).name == name


@pytest.mark.parametrize("text", list(blocks("python")))
def test_python_in_documents(text: str) -> None:
    ast.parse(text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"`((?:attnc|grammar|templates|backends|specs|tests|docs)/[\w/.]+)`", text):
        if "NAME" not in name:
            assert (ROOT / name).exists(), name


def test_prelude_is_documented() -> None:
    text = (ROOT / "docs" / "language.md").read_text()
    prelude = text[text.index("## The prelude") : text.index("## Routing")] + text[text.index("## Expressions") :]
    helpers = {"group_length", "lead", "in_window", "centre", "is_power_of_two"}
    defined = set(re.findall(r"^def (\w+)", std_source().text, re.MULTILINE)) - helpers
    assert {name for name in defined if not re.search(rf"\b{name}\b", prelude)} == set()
