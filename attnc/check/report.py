"""Collecting the errors of a spec."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from attnc.grammar.diagnostic import Diagnostic, SpecError
from attnc.grammar.source import Span

MAX_ERRORS = 100


class TooMuch(Exception):
    """A limit is exceeded; it is reported, and checking ends."""


class Report:
    """The errors found so far."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, int, str], Diagnostic] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(
        self,
        code: str,
        message: str,
        span: Span,
        label: str = "",
        hint: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Report an error; the same error at the same place counts once."""
        key = (code, span.source.name, span.start, message)
        self._found.setdefault(key, Diagnostic(code, message, span, label, hint, notes))
        if len(self._found) >= MAX_ERRORS:
            raise TooMuch

    def extend(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Report errors found elsewhere."""
        for found in diagnostics:
            self.add(found.code, found.message, found.span, found.label, found.hint, found.notes)

    def raise_if_any(self) -> None:
        """Raise all errors, in the order of the text."""
        if self._found:
            raise SpecError(sorted(self._found.values(), key=lambda d: (d.span.source.name, d.span.start, d.code)))


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """A hint at the nearest candidate."""
    known = sorted(set(candidates))
    close = difflib.get_close_matches(name, known, 1)
    if not close:
        close = [other for other in known if other.lower() == name.lower()][:1]
    return f"did you mean `{close[0]}`?" if close else None
