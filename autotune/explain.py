"""Why nothing was found for a key: the nearest one that was tuned, and the fields in which it differs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from attnc.autotune.key import Key, differences


@dataclass(frozen=True, slots=True)
class Nearest:
    """Another key, and each part and field in which it differs, with our value and theirs."""

    key: Key
    differs: tuple[tuple[str, str, Any, Any], ...]


def nearest(key: Key, others: Iterable[Key]) -> Nearest | None:
    """The key among ``others`` that is least :func:`distance` away; ``None`` if there are none."""
    found = min(others, key=lambda other: distance(key, other), default=None)
    return None if found is None else Nearest(found, tuple(differences(key, found)))


def distance(a: Key, b: Key) -> tuple[int, int, str]:
    """How far apart two keys are: in how many parts, in how many fields; sizes by how many buckets are between."""
    differs = list(differences(a, b))
    steps = sum(
        abs(ours - theirs) if name.startswith("bucket.") and isinstance(ours, int) and isinstance(theirs, int) else 1
        for _, name, ours, theirs in differs
    )
    return len({part for part, *_ in differs}), steps, b.digest


def sentences(found: Nearest) -> list[str]:
    """Each difference as a line."""
    return [
        f"{part}: {name} is {_short(ours)} here, {_short(theirs)} there" for part, name, ours, theirs in found.differs
    ]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
