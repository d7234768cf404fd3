"""Errors of a spec: what is wrong, where, what was expected and how to mend it; and the one renderer of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from attnc.grammar.source import Span

TAB = "    "
WIDEST = 160


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One error. ``label`` stands under the underlined text; ``hint`` says how to mend it."""

    code: str
    message: str
    span: Span
    label: str = ""
    hint: str | None = None
    notes: tuple[str, ...] = ()


class SpecError(Exception):
    """All errors of a spec, in the order of the text."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__(diagnostics)
        self.diagnostics: tuple[Diagnostic, ...] = tuple(diagnostics)

    def __str__(self) -> str:
        return render(self.diagnostics)


def render(diagnostics: Iterable[Diagnostic], colour: bool = False) -> str:
    """The errors as text, with ANSI colours if ``colour``; ends without a newline."""
    return "\n\n".join(_render_one(diagnostic, colour) for diagnostic in diagnostics)


def to_json(diagnostics: Iterable[Diagnostic]) -> str:
    """The errors as a JSON list; lines and columns count from 1, ``end_column`` is exclusive."""
    return json.dumps([_as_dict(diagnostic) for diagnostic in diagnostics], indent=2, ensure_ascii=False)


def _as_dict(diagnostic: Diagnostic) -> dict[str, Any]:
    span = diagnostic.span
    end = Span(span.source, span.end, span.end)
    return {
        "code": diagnostic.code,
        "message": diagnostic.message,
        "file": span.source.name,
        "line": span.line,
        "column": span.column,
        "end_line": end.line,
        "end_column": end.column,
        "label": diagnostic.label,
        "hint": diagnostic.hint,
        "notes": list(diagnostic.notes),
    }


def _render_one(diagnostic: Diagnostic, colour: bool) -> str:
    def paint(style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if colour and text else text

    span = diagnostic.span
    number = str(span.line)
    line, at = _clipped(span.source.line(span.line), span.column - 1)
    before = line[:at]
    marked = line[at : at + max(1, span.end - span.start)] or " "
    gutter = " " * len(number)
    bar = paint("34", "|")
    margin = "".join("\t" if c == "\t" else " " for c in before).replace("\t", TAB)
    underline = "^" * max(1, len(_printable(marked)))
    label = f" {diagnostic.label}" if diagnostic.label else ""
    lines = [
        f"{span}: {paint('1;31', f'error[{diagnostic.code}]')}: {paint('1', diagnostic.message)}",
        f" {gutter} {bar}",
        f" {paint('34', number)} {bar} {_printable(line)}".rstrip(),
        f" {gutter} {bar} {margin}{paint('1;31', underline + label)}",
    ]
    lines += [f" {gutter} {paint('34', '=')} {paint('36', 'note')}: {note}" for note in diagnostic.notes]
    if diagnostic.hint:
        lines.append(f" {gutter} {paint('34', '=')} {paint('32', 'hint')}: {diagnostic.hint}")
    return "\n".join(lines)


def _clipped(line: str, at: int) -> tuple[str, int]:
    """The part of a long line around a position, and the position in it."""
    if len(line) <= WIDEST:
        return line, at
    first = max(0, min(at - WIDEST // 4, len(line) - WIDEST))
    before, after = "..." if first else "", "..." if first + WIDEST < len(line) else ""
    return before + line[first : first + WIDEST] + after, at - first + len(before)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text.replace("\t", TAB))
