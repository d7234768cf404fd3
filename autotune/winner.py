"""Which config a set of observations speaks for. It is derived at every look-up, never stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from attnc.autotune.record import Conflict, Observation, Pin, Record, name_of
from attnc.backends.protocol import Config, Space

TIE = 0.01
"""Ratios this near are equal, and the smallest config wins, so that machines and runs agree."""


def winner(records: Iterable[Record], space: Space | None = None) -> Config | None:
    """The config to use, or ``None`` if nothing was tuned. It depends on the set of records alone.

    A pin decides. Otherwise the least median of ``relative_to_default`` over final measurements does, and within
    :data:`TIE` of it the first by :func:`~attnc.autotune.record.name_of`, the default before all. A config that was
    ever wrong, or is none of ``space``, is out.

    Raises:
        Conflict: pins disagree.
    """
    records = list(records)
    pinned = {name_of(one.config): one.config for one in records if isinstance(one, Pin) and _fits(one.config, space)}
    if len(pinned) > 1:
        raise Conflict("two pins name different configs: remove one of them")
    if pinned:
        return next(iter(pinned.values()))
    ratios = ranking([one for one in records if isinstance(one, Observation)], space)
    if not ratios:
        return None
    best = ratios[0][1]
    return min((config for config, ratio in ratios if ratio <= best * (1 + TIE)), key=name_of)


def ranking(records: Sequence[Observation], space: Space | None = None) -> list[tuple[Config, float]]:
    """Configs with the median of their final ratios, best first; empty unless the default was measured too."""
    ratios: dict[str, list[float]] = defaultdict(list)
    configs: dict[str, Config] = {}
    out = {name_of(one.config) for one in records if one.status == "wrong"}
    for one in records:
        name = name_of(one.config)
        if one.stage == "final" and one.status == "ok" and name not in out and _fits(one.config, space):
            assert one.relative_to_default is not None
            configs[name] = one.config
            ratios[name].append(one.relative_to_default)
    if "" not in configs:
        return []
    import statistics  # takes as long to import as all else that a cached kernel needs of the tuner

    return sorted(((configs[name], statistics.median(r)) for name, r in ratios.items()), key=lambda x: x[1])


def _fits(config: Config, space: Space | None) -> bool:
    return space is None or space.problem(config) is None
