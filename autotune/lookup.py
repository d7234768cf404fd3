"""From a request to the config that was found best: where results are looked for, and in which order.

Explicit stores (``ATTNC_TUNED``), the project's ``attnc_tuned/``, the user's store, a remote (``ATTNC_TUNED_REMOTE``),
what came with attnc. The first place that knows the key decides.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import MappingProxyType

from attnc import cache
from attnc.autotune.bundle import read_bundle, search_bundle
from attnc.autotune.explain import Nearest, distance, sentences
from attnc.autotune.hardware import name_of
from attnc.autotune.key import Key, differences, key_of
from attnc.autotune.record import Record, write
from attnc.autotune.request import Request
from attnc.autotune.store import Store
from attnc.autotune.winner import Conflict, winner
from attnc.backends.protocol import Config, Space
from attnc.errors import BundleError, TargetError

PROJECT = "attnc_tuned"
_DEFAULT: Config = MappingProxyType({})
_log = logging.getLogger("attnc")

Source = Callable[[Key], list[Record]]


def user_store() -> Store:
    """Where results of this user go: ``ATTNC_TUNING_DIR``, or beside the kernel cache."""
    given = os.environ.get("ATTNC_TUNING_DIR")
    return Store(Path(given) if given else cache.folder() / "tuning")


def sources(explicit: Iterable[Path] = ()) -> Iterator[tuple[str, Source]]:
    """Every place, first the most specific, with its name."""
    named = [Path(text) for text in os.environ.get("ATTNC_TUNED", "").split(os.pathsep) if text]
    for path in (*explicit, *named):
        yield str(path), from_path(path)
    yield PROJECT, from_path(Path.cwd() / PROJECT)
    user = user_store()
    yield "user", lambda key: user.records(key.digest)
    if url := os.environ.get("ATTNC_TUNED_REMOTE"):
        yield url, lambda key: _from_remote(url, key)
    yield "attnc", from_path(packaged())


def packaged() -> Path:
    """The folder of the results that came with attnc."""
    import attnc.tuned

    return Path(next(iter(attnc.tuned.__path__)))


def from_path(path: Path) -> Source:
    """Records in a store, in one bundle, or in a folder of bundles named by hardware."""
    if path.suffix == ".jsonl":
        return lambda key: search_bundle(path, key.digest)
    if (path / "v1").is_dir():
        return lambda key: Store(path).records(key.digest)
    return lambda key: search_bundle(path / f"{name_of(dict(key.parts['hardware']))}.jsonl", key.digest)


def all_records(path: Path) -> list[Record]:
    """Every record of a store, a bundle or a folder of bundles.

    Raises:
        BundleError: it is none of these, or a bundle is damaged.
    """
    if path.suffix == ".jsonl":
        return read_bundle(path)
    if (path / "v1").is_dir():
        return list(Store(path).all())
    bundles = sorted(path.glob("*.jsonl")) if path.is_dir() else []
    if not bundles:
        raise BundleError(f"{path} is neither a store, nor a bundle (.jsonl), nor a folder of bundles")
    return [record for bundle in bundles for record in read_bundle(bundle)]


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
        found = winner(records, request.space())
        return None if found is None else dict(found)

    known = sorted(hashlib.sha256(write(record)).hexdigest() for record in records)
    return cache.remember(cache.key_of("winner", key.digest, request.backend.toolchain(), known), decide)


def cached(request: Request) -> Config:
    """A :data:`~attnc.autotune.request.Chooser` that applies what was tuned. It never raises."""
    if not request.sizes:
        return _DEFAULT
    try:
        key = key_of(request)
        found = find(request, key)
    except TargetError:
        return _DEFAULT
    except Exception as error:  # results of others decide how fast a call is, never whether it works
        _log.warning("attnc tuning results were not used: %s: %s", type(error).__name__, error)
        return _DEFAULT
    if found is None:
        _log.info("attnc: nothing tuned for this; `%s` would", _command(request))
        return _DEFAULT
    _log.debug("attnc: %s from %s for %s", dict(found[1]), found[0], key.digest[:12])
    return found[1]


def compatible(request: Request) -> Config:
    """:func:`cached`, and on a miss the best config of the nearest key of the same backend, with a warning."""
    found = cached(request)
    try:
        key = key_of(request)
        if found or find(request, key) is not None:
            return found
        known = [*user_store().all(), *(all_records(packaged()) if list(packaged().glob("*.jsonl")) else [])]
        for config, near in nearby(key, request.space(), known):
            _log.warning("attnc: %s is tuned for another %s", request.program.name, "; ".join(sentences(near)[:3]))
            return config
    except TargetError:
        return _DEFAULT
    except Exception as error:  # as in `cached`
        _log.warning("attnc tuning results were not used: %s: %s", type(error).__name__, error)
    return _DEFAULT


def nearby(key: Key, space: Space, records: Iterable[Record]) -> Iterator[tuple[Config, Nearest]]:
    """The best configs of the keys nearest to ``key``: neighbouring sizes, other specs, toolchains and machines."""
    by_key: dict[str, list[Record]] = {}
    for one in records:
        if one.key.parts["space"].get("backend") == key.parts["space"]["backend"] and one.key.digest != key.digest:
            by_key.setdefault(one.key.digest, []).append(one)
    seen: list[Config] = []
    for others in sorted(by_key.values(), key=lambda found: distance(key, found[0].key)):
        try:
            config = winner(others, space)
        except Conflict:
            continue
        if config and config not in seen:
            seen.append(config)
            yield config, Nearest(others[0].key, tuple(differences(key, others[0].key)))


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


@functools.cache
def _remote_seen() -> dict[tuple[str, str], list[Record]]:
    return {}


def _from_remote(url: str, key: Key) -> list[Record]:
    """What a remote has of a key, fetched once a process into the user's store; nothing if it cannot be reached."""
    from attnc.autotune.remote import Remote

    seen = _remote_seen()
    if (url, key.digest) not in seen:
        try:
            Remote(url).pull(user_store(), [key.digest])
            seen[url, key.digest] = user_store().records(key.digest)
        except Exception as error:  # whatever network and server do, the kernel runs
            _log.warning("attnc: the remote %s cannot be used: %s", url, error)
            seen[url, key.digest] = []
    return seen[url, key.digest]
