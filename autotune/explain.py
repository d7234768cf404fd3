"""Why nothing was found for a key: the nearest one that was tuned, and the fields in which it differs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from attnc.autotune.key import Key, differences
from attnc.autotune.record import Record


@dataclass(frozen=True, slots=True)
class Nearest:
    """Another key, and each part and field in which it differs, with our value and theirs."""

    key: Key
    differs: tuple[tuple[str, str, Any, Any], ...]


def nearest(key: Key, records: Iterable[Record]) -> Nearest | None:
    """The key among ``records`` that differs in the fewest parts, then fields; ``None`` if there are no records."""
    others = {one.key.digest: one.key for one in records}
    found = [Nearest(other, tuple(differences(key, other))) for other in others.values()]
    return min(found, key=lambda one: distance(key, one.key), default=None)


def distance(a: Key, b: Key) -> tuple[int, int, str]:
    """How far apart two keys are: in how many parts, in how many fields."""
    differs = list(differences(a, b))
    return len({part for part, *_ in differs}), len(differs), b.digest


def sentences(found: Nearest) -> list[str]:
    """Each difference as a line."""
    return [
        f"{part}: {name} is {_short(ours)} here, {_short(theirs)} there" for part, name, ours, theirs in found.differs
    ]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
