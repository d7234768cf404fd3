"""Results of other keys: where a search begins, and what ``tune="compatible"`` applies on a miss."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from attnc.autotune.explain import Nearest, distance, sentences
from attnc.autotune.key import Key, differences, key_of
from attnc.autotune.lookup import DEFAULT, cached, find
from attnc.autotune.places import Known, everything, user_store
from attnc.autotune.record import Conflict
from attnc.autotune.request import Request
from attnc.autotune.winner import winner
from attnc.backends.protocol import Config, Space
from attnc.errors import TargetError

_log = logging.getLogger("attnc")


def nearby(key: Key, space: Space, known: Iterable[Known]) -> Iterator[tuple[Config, Nearest]]:
    """The best configs of the keys nearest to ``key``: neighbouring sizes, other specs, toolchains and machines.

    Records are read of as many keys as are asked for.
    """
    backend = key.parts["space"]["backend"]
    others = {
        other.digest: (other, read)
        for other, read in known
        if other.parts["space"].get("backend") == backend and other.digest != key.digest
    }
    seen: list[Config] = []
    for other, read in sorted(others.values(), key=lambda found: distance(key, found[0])):
        try:
            config = winner(read(), space)
        except Conflict:
            continue
        if config and config not in seen:
            seen.append(config)
            yield config, Nearest(other, tuple(differences(key, other)))


def compatible(request: Request) -> Config:
    """:func:`~attnc.autotune.lookup.cached`, and on a miss the best config of the nearest key, with a warning."""
    found = cached(request)
    try:
        key = key_of(request)
        if found or find(request, key) is not None:
            return found
        for config, near in nearby(key, request.space(), everything(user_store())):
            _log.warning("attnc: %s is tuned for another %s", request.program.name, "; ".join(sentences(near)[:3]))
            return config
    except TargetError:
        return DEFAULT
    except Exception as error:  # as in `cached`
        _log.warning("attnc tuning results were not used: %s: %s", type(error).__name__, error)
    return DEFAULT
