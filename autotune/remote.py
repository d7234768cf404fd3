"""A store somewhere else, through fsspec: a folder, s3, gs, ssh, ftp, and whatever else it knows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from attnc.autotune.canonical import LARGEST, Malformed
from attnc.autotune.record import Pin, is_digest, write
from attnc.autotune.store import KINDS, VERSION, Store, read_named


@dataclass(frozen=True, slots=True)
class Transfer:
    """What was moved, what was there already, and what was no record."""

    moved: int
    present: int
    refused: int


class Remote:
    """The store at ``url``. Records are found by their content, so pushes and pulls can be repeated and torn."""

    def __init__(self, url: str, **options: Any) -> None:
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(url, **options)
        self._fs: Any = filesystem
        self._root = PurePosixPath(root)

    def push(self, store: Store, keys: Iterable[str] | None = None, dry: bool = False) -> Transfer:
        """Send what the remote lacks.

        Raises:
            OSError: it cannot be reached, or refuses.
        """
        moved = present = 0
        for key in store.key_names() if keys is None else keys:
            held = self._held(key)
            for record in store.records(key):
                data = write(record)
                name = f"{'pins' if isinstance(record, Pin) else 'obs'}/{hashlib.sha256(data).hexdigest()}.json"
                if name in held:
                    present += 1
                    continue
                moved += 1
                if not dry:
                    path = self._folder(key) / name
                    self._fs.makedirs(str(path.parent), exist_ok=True)
                    self._fs.pipe_file(str(path), data)
        return Transfer(moved, present, 0)

    def pull(self, store: Store, keys: Iterable[str] | None = None, dry: bool = False) -> Transfer:
        """Fetch what ``store`` lacks; what is no record, or not the one it is called, is refused.

        Raises:
            OSError: the remote cannot be reached.
        """
        moved = present = refused = 0
        for key in self.keys() if keys is None else keys:
            for name in sorted(self._held(key)):
                if (store.folder(key) / name).exists():
                    present += 1
                    continue
                try:
                    data = self._fs.cat_file(str(self._folder(key) / name), start=0, end=LARGEST + 1)
                    record = read_named(PurePosixPath(name).stem, data)
                    if record.key.digest != key:
                        raise Malformed("it is of another key")
                except (Malformed, FileNotFoundError):
                    refused += 1
                    continue
                moved += 1
                if not dry:
                    store.put(record)
        return Transfer(moved, present, refused)

    def keys(self) -> list[str]:
        """The names of the keys that it has."""
        shorts = [name for name in self._names(self._root / VERSION) if len(name) == 2]
        found = [key for short in shorts for key in self._names(self._root / VERSION / short) if key[:2] == short]
        return sorted(filter(is_digest, found))

    def _held(self, key: str) -> set[str]:
        """``obs/<sha>.json`` and ``pins/...`` of a key."""
        return {
            f"{kind}/{name}"
            for kind in KINDS
            for name in self._names(self._folder(key) / kind)
            if name.endswith(".json") and is_digest(name.removesuffix(".json"))
        }

    def _folder(self, key: str) -> PurePosixPath:
        return self._root / VERSION / key[:2] / key

    def _names(self, folder: PurePosixPath) -> list[str]:
        self._fs.invalidate_cache()
        try:
            return [PurePosixPath(path.rstrip("/")).name for path in self._fs.ls(str(folder), detail=False)]
        except FileNotFoundError:
            return []
