"""What the compiler is given: the text of a spec, and what the caller settles about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attnc.grammar.source import Source

Constants = Mapping[str, int | float | bool]


@dataclass(frozen=True, slots=True)
class Spec:
    """A text, which attention of it is meant, values for its constants, and where its imports are looked for."""

    source: Source
    name: str | None = None
    constants: Constants = field(default_factory=dict)
    search: Sequence[Path] = ()
