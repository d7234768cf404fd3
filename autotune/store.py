"""A folder of records: ``v1/<kk>/<key>/obs/<sha>.json`` and ``pins/``. Merging is a union of files.

Nothing is ever rewritten, so processes need no lock: a record appears by one rename, under the digest of its content.
What is not a record, is a link, or is too much, is skipped with one line in the log.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from attnc.autotune.canonical import LARGEST, Malformed, dumps, loads
from attnc.autotune.key import Key
from attnc.autotune.record import Pin, Record, is_digest, read, write

VERSION = "v1"
MOST = 4096
"""Records of one key that are read; there are never so many unless something went wrong."""
SCANNED = 100_000
"""Names in one folder that are looked at; a folder with more is left out as a whole."""
KINDS = ("obs", "pins")
_log = logging.getLogger("attnc")


@dataclass(frozen=True, slots=True)
class Store:
    """The store in the folder ``root``, which need not exist."""

    root: Path

    def put(self, record: Record) -> str:
        """Keep a record; the name it got.

        Raises:
            OSError: the disk refuses.
        """
        data = write(record)
        name = hashlib.sha256(data).hexdigest()
        folder = self.folder(record.key.digest)
        write_once(folder / ("pins" if isinstance(record, Pin) else "obs") / f"{name}.json", data)
        write_once(folder / "key.json", dumps(dict(record.key.parts)))
        return name

    def records(self, key: str) -> list[Record]:
        """Every record of a key that can be read, in the order of their names."""
        found: list[Record] = []
        problems: list[str] = []
        for path in self._files(key, problems):
            try:
                record = read_named(path.stem, read_file(path))
                if record.key.digest != key:
                    raise Malformed("it is of another key")
                found.append(record)
            except (Malformed, OSError) as error:
                problems.append(f"{path.name}: {error}")
        if problems:
            _log.warning("attnc skipped %d tuning records in %s: %s", len(problems), self.folder(key), problems[0])
        return found

    def key_names(self) -> Iterator[str]:
        """The names of all keys, in order."""
        for short in _folders(self.root / VERSION):
            yield from (key.name for key in _folders(short) if is_digest(key.name) and key.name[:2] == short.name)

    def each_key(self) -> Iterator[Key]:
        """All keys whose description can be read and is theirs; records are not."""
        for name in self.key_names():
            try:
                key = Key.of(loads(read_file(self.folder(name) / "key.json")))
            except (Malformed, OSError):
                continue
            if key.digest == name:
                yield key

    def all(self) -> Iterator[Record]:
        """Every record that can be read."""
        for key in self.key_names():
            yield from self.records(key)

    def merge(self, records: Iterable[Record]) -> int:
        """Add what is missing; how many that were."""
        added = 0
        for record in records:
            data = write(record)
            kind = "pins" if isinstance(record, Pin) else "obs"
            path = self.folder(record.key.digest) / kind / f"{hashlib.sha256(data).hexdigest()}.json"
            if not path.exists():
                self.put(record)
                added += 1
        return added

    def folder(self, key: str) -> Path:
        """Where the records of a key stand."""
        return self.root / VERSION / key[:2] / key

    def _files(self, key: str, problems: list[str]) -> list[Path]:
        folder = self.folder(key)
        if not is_digest(key) or any(link.is_symlink() for link in (folder, folder.parent, folder.parent.parent)):
            return []
        found: list[Path] = []
        for kind in KINDS:
            if (folder / kind).is_symlink():
                problems.append(f"{kind} is a link")
                continue
            names = _records_in(folder / kind, problems)
            if len(names) > MOST:
                problems.append(f"there are {len(names)}, of which {MOST} are read")
            found += [folder / kind / name for name in sorted(names)[:MOST]]
        return found


def _records_in(folder: Path, problems: list[str]) -> list[str]:
    """The names in a folder that may be records; none of a folder that is too full to be one of ours."""
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number == SCANNED:
                problems.append(f"{folder.name} holds more than {SCANNED} files and is left out")
                return []
            if entry.name.startswith("."):
                continue
            if not entry.is_file(follow_symlinks=False) or not is_digest(entry.name.removesuffix(".json")):
                problems.append(f"{entry.name[:80]} is no record")
            else:
                names.append(entry.name)
    return names


def read_file(path: Path) -> bytes:
    """The bytes of a regular file that is not too large, links not followed.

    Raises:
        OSError: it is none, or cannot be read.
    """
    with open_regular(path) as file:
        return file.read(LARGEST + 1)


def open_regular(path: Path) -> BinaryIO:
    """A file opened for reading: no link, no device, and no pipe that would be waited for.

    Raises:
        OSError: it is one of these, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return open(descriptor, "rb")


def read_named(name: str, data: bytes) -> Record:
    """The record in ``data``, whose digest must be ``name``.

    Raises:
        Malformed: it is another, or no record.
    """
    if len(data) <= LARGEST and hashlib.sha256(data).hexdigest() != name:
        raise Malformed("its content is not what its name says")
    return read(data)


def write_once(path: Path, data: bytes) -> None:
    """Write a file that nobody sees half of, unless it stands there already."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, made = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(made, 0o644)
        os.replace(made, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(made)
        raise


def _folders(where: Path) -> list[Path]:
    try:
        with os.scandir(where) as entries:
            some = itertools.islice(entries, SCANNED)
            names = sorted(entry.name for entry in some if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    return [where / name for name in names if not name.startswith(".")]
