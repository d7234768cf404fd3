"""From a request to the config that was found best. The first of :mod:`attnc.autotune.places` that knows decides."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attnc import cache
from attnc.autotune.key import Key, key_of
from attnc.autotune.places import sources
from attnc.autotune.record import Conflict, Record, write
from attnc.autotune.request import Request
from attnc.backends.protocol import Config
from attnc.errors import TargetError

DEFAULT: Config = MappingProxyType({})
_log = logging.getLogger("attnc")


def find(request: Request, key: Key, explicit: Iterable[Path] = ()) -> tuple[str, Config] | None:
    """The place that knows ``key``, and its config; ``None`` if none does."""
    for name, source in sources(explicit):
        if records := source(key):
            try:
                found = _winner(request, key, records)
            except Conflict as error:
                _log.warning("attnc ignores %s for %s: %s", name, key.digest[:12], error)
                continue
            if found is not None:
                return name, found
    return None


def _winner(request: Request, key: Key, records: list[Record]) -> Config | None:
    """The winner among records, remembered on disk: spaces import compilers, which a cached kernel does without."""

    def decide() -> dict[str, int | str] | None:
        from attnc.autotune.winner import winner

        found = winner(records, request.space())
        return None if found is None else dict(found)

    known = sorted(hashlib.sha256(write(record)).hexdigest() for record in records)
    return cache.remember(cache.key_of("winner", key.digest, request.backend.toolchain(request.target), known), decide)


def cached(request: Request, hardware: Mapping[str, Any] | None = None) -> Config:
    """A :data:`~attnc.autotune.request.Chooser` that applies what was tuned, here or there. It never raises."""
    if not request.sizes:
        return DEFAULT
    try:
        key = key_of(request, hardware)
        found = find(request, key)
    except TargetError:
        return DEFAULT
    except Exception as error:  # results of others decide how fast a call is, never whether it works
        _log.warning("attnc tuning results were not used: %s: %s", type(error).__name__, error)
        return DEFAULT
    if found is None:
        _log.info("attnc: nothing tuned for this; `%s` would", _command(request))
        return DEFAULT
    _log.debug("attnc: %s from %s for %s", dict(found[1]), found[0], key.digest[:12])
    return found[1]


def shape_text(request: Request) -> str:
    """Sizes as ``attnc tune --shapes`` takes them."""
    d, e = request.widths
    widths = {"D": d} if d == e else {"D": d, "E": e}
    sizes = {name: size for name, size in request.sizes.items() if name not in ("D", "E")}
    return ",".join(f"{name}={size}" for name, size in {**sizes, **widths}.items())


def _command(request: Request) -> str:
    grad = " --grad" if request.direction == "backward" or request.workload.saved else ""
    if request.wants and set(request.wants) != {"q", "k", "v"}:
        grad += f" --wrt {','.join(request.wants)}"
    if request.direction == "backward" and not request.workload.unordered:
        grad += " --deterministic"
    return (
        f"attnc tune SPEC:{request.program.name} --target {request.target} --dtype {request.workload.dtype} "
        f"--shapes {shape_text(request)}{grad}"
    )
