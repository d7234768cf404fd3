"""What goes wrong after a spec is read: wrong arguments, targets and bundles. A wrong spec is a ``SpecError``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from attnc.grammar.diagnostic import SpecError


class ArgumentError(ValueError):
    """A call does not fit its spec. ``argument`` is the name of what is wrong."""

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument


class TargetError(ValueError):
    """A target or backend that does not exist, or (``missing``) needs something that is not installed here."""

    def __init__(self, message: str, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


class UnsupportedError(SpecError):
    """A right spec that a target cannot run; the diagnostics point at what it cannot."""


class BundleError(ValueError):
    """A folder that is no bundle, or one that is damaged or of a newer format."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`` (did you mean `right`?)``, or nothing if no known name is near."""
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.5)
    return f" (did you mean `{near[0]}`?)" if near else ""
