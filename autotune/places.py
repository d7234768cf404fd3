"""Where tuning results are looked for, and in which order.

Explicit stores (``ATTNC_TUNED``), the project's ``attnc_tuned/``, the user's store, a remote (``ATTNC_TUNED_REMOTE``),
what came with attnc.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from attnc import cache
from attnc.autotune.bundle import read_bundle, search_bundle
from attnc.autotune.hardware import name_of
from attnc.autotune.key import Key
from attnc.autotune.record import Record
from attnc.autotune.store import Store
from attnc.errors import ArgumentError, BundleError

PROJECT = "attnc_tuned"
Source: TypeAlias = Callable[[Key], list[Record]]
Known: TypeAlias = tuple[Key, Callable[[], list[Record]]]
"""A key that something is known of, and what reads that."""
_log = logging.getLogger("attnc")


def user_store() -> Store:
    """Where results of this user go: ``ATTNC_TUNING_DIR``, or beside the kernel cache."""
    given = os.environ.get("ATTNC_TUNING_DIR")
    return Store(Path(given) if given else cache.folder() / "tuning")


def packaged() -> Path:
    """The folder of the results that came with attnc."""
    import attnc.tuned

    return Path(next(iter(attnc.tuned.__path__)))


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


def everything(store: Store) -> Iterator[Known]:
    """All keys of a store, of the project and of what came with attnc; their records are read when they are wanted."""
    for key in store.each_key():
        yield key, functools.partial(store.records, key.digest)
    for folder in (Path.cwd() / PROJECT, packaged()):
        if not list(folder.glob("*.jsonl")):
            continue
        try:
            found = all_records(folder)
        except (BundleError, OSError) as error:
            _log.warning("attnc leaves %s out: %s", folder, error)
            continue
        by_key: dict[str, list[Record]] = {}
        for record in found:
            by_key.setdefault(record.key.digest, []).append(record)
        for records in by_key.values():
            yield records[0].key, functools.partial(list, records)


def hardware_called(name: str) -> Mapping[str, Any]:
    """The hardware that :func:`~attnc.autotune.hardware.name_of` calls so, of which something is known here.

    Raises:
        ArgumentError: nothing is.
    """
    known = {name_of(dict(key.parts["hardware"])): key.parts["hardware"] for key, _ in everything(user_store())}
    if name not in known:
        raise ArgumentError(
            "hardware", f"nothing is tuned for `{name}`; known are {', '.join(sorted(known)) or 'none'}"
        )
    return known[name]


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
