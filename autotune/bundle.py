"""Records as one text file, a line each, sorted: made to be committed, and to be carried about."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from attnc.autotune.canonical import LARGEST, Malformed
from attnc.autotune.record import Record, write
from attnc.autotune.store import open_regular, read_named
from attnc.errors import BundleError

LARGEST_BUNDLE = 256 * 2**20
_LINE = re.compile(rb"([0-9a-f]{64}) (\{.*\})")
_log = logging.getLogger("attnc")


def write_bundle(path: Path, records: Iterable[Record]) -> int:
    """Write records to ``path``, each line its digest and its content; how many distinct ones there are."""
    lines = {}
    for record in records:
        data = write(record)
        lines[hashlib.sha256(data).hexdigest()] = (record.key.digest, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, made = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    with open(descriptor, "wb") as file:
        for name, (_, data) in sorted(lines.items(), key=lambda line: (line[1][0], line[0])):
            file.write(name.encode() + b" " + data + b"\n")
    os.chmod(made, 0o644)
    os.replace(made, path)
    return len(lines)


def read_bundle(path: Path) -> list[Record]:
    """All records of a bundle.

    Raises:
        BundleError: it is too large, or any line is not what was written.
        OSError: it cannot be read.
    """
    records = []
    for number, line in enumerate(_lines(path.open("rb"), path), 1):
        try:
            records.append(_record(line))
        except Malformed as error:
            raise BundleError(f"{path}, line {number}: {error}; nothing was imported") from None
    return records


def search_bundle(path: Path, key: str) -> list[Record]:
    """The records of one key in a bundle that may be damaged, missing or a link: skipped with one line in the log."""
    found, problems = [], []
    wanted = b'"key":"' + key.encode() + b'"'
    try:
        for line in _lines(open_regular(path), path):
            if wanted in line:
                try:
                    found.append(_record(line))
                except Malformed as error:
                    problems.append(str(error))
    except FileNotFoundError:
        return []
    except (OSError, BundleError) as error:
        problems.append(str(error))
    if problems:
        _log.warning("attnc skipped %d tuning records in %s: %s", len(problems), path, problems[0])
    return [one for one in found if one.key.digest == key]


def _record(line: bytes) -> Record:
    found = _LINE.fullmatch(line)
    if found is None:
        raise Malformed("it is no record with its digest")
    return read_named(found[1].decode(), found[2])


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    with file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST_BUNDLE:
            raise BundleError(f"{path} has {size} bytes, over {LARGEST_BUNDLE}")
        while line := file.readline(LARGEST + 100):
            yield line.rstrip(b"\n")
