"""The store: what many processes put, what merging gives, and what somebody else may have put there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_cases import key, observation, pin, random_observation

from attnc.autotune import store as stores
from attnc.autotune.bundle import read_bundle, search_bundle, write_bundle
from attnc.autotune.hardware import name_of
from attnc.autotune.places import packaged
from attnc.autotune.record import Record, write
from attnc.autotune.store import Store
from attnc.autotune.winner import winner
from attnc.errors import BundleError

KEY = key().digest
PUTS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tuning_cases import observation
from attnc.autotune.store import Store
for number in range(20):
    Store(Path(sys.argv[1])).put(observation(run_id=f"{sys.argv[2]} {number}"))
    Store(Path(sys.argv[1])).put(observation(run_id=f"all {number}"))
"""


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_eight_processes_lose_nothing(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    running = [
        subprocess.Popen([sys.executable, "-c", PUTS, str(tmp_path), str(number), str(tests)]) for number in range(8)
    ]
    assert [one.wait(300) for one in running] == [0] * 8
    runs = {one.run_id for one in Store(tmp_path).records(KEY)}  # type: ignore[union-attr]
    assert runs == {f"{who} {number}" for who in [*map(str, range(8)), "all"] for number in range(20)}
    assert not list(tmp_path.rglob(".new-*"))


records = st.integers(0, 2**32).map(lambda seed: random_observation(random.Random(seed)))


@given(st.lists(records, max_size=6), st.lists(records, max_size=6), st.lists(records, max_size=6))
@settings(max_examples=6)
def test_merging_is_a_union(a: list[Record], b: list[Record], c: list[Record]) -> None:
    import tempfile

    def merged(where: Path, *parts: list[Record]) -> dict[str, bytes]:
        for part in parts:
            Store(where).merge(part)
        return files(where)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = merged(root / "abc", a, b, c)
        assert merged(root / "cba", c, b, a) == whole
        merged(root / "bc", b, c)
        assert merged(root / "a(bc)", a, list(Store(root / "bc").all())) == whole
        assert merged(root / "abc", a, c) == whole
        assert Store(root / "abc").merge(Store(root / "cba").all()) == 0


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.put(observation())
    made.put(pin())
    return made


def spoilt(store: Store, name: str, data: bytes) -> None:
    (store.folder(KEY) / "obs" / name).write_bytes(data)


def named(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() + ".json"


def from_the_future(store: Store, tmp_path: Path) -> None:
    data = json.dumps(json.loads(write(observation())) | {"schema": 99}).encode()
    spoilt(store, named(data), data)


def truncated(store: Store, tmp_path: Path) -> None:
    data = write(observation(run_id="x"))
    spoilt(store, named(data), data[:-40])


def of_another_key(store: Store, tmp_path: Path) -> None:
    data = write(observation(key(workload__dtype="f16")))
    spoilt(store, named(data), data)


def oversized(store: Store, tmp_path: Path) -> None:
    spoilt(store, named(b" " * 10**6), b" " * 10**6)


def a_link_out(store: Store, tmp_path: Path) -> None:
    data = write(observation(run_id="x"))
    (tmp_path / "outside").write_bytes(data)
    (store.folder(KEY) / "obs" / named(data)).symlink_to(tmp_path / "outside")


def code(store: Store, tmp_path: Path) -> None:
    good = json.loads(write(observation()))
    data = json.dumps(good | {"config": {"tile": "__import__('os').system('touch pwned')"}}).encode()
    spoilt(store, named(data), data)


def another_name(store: Store, tmp_path: Path) -> None:
    spoilt(store, "%2f..%2fescape.json", b"{}")


def a_folder(store: Store, tmp_path: Path) -> None:
    (store.folder(KEY) / "obs" / ("0" * 64 + ".json")).mkdir()


@pytest.mark.parametrize(
    "spoil", [from_the_future, truncated, of_another_key, oversized, a_link_out, code, another_name, a_folder]
)
def test_what_is_no_record_is_skipped_with_one_line(
    spoil: object, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(store, tmp_path)  # type: ignore[operator]
    assert store.records(KEY) == [observation(), pin()]
    assert len(warned(caplog)) == 1


@pytest.mark.parametrize("part", ["", "obs", ".."])
def test_links_of_folders_are_not_followed(part: str, store: Store, tmp_path: Path) -> None:
    real = (store.folder(KEY) / part).resolve()
    real.rename(tmp_path / "moved")
    real.symlink_to(tmp_path / "moved")
    assert observation() not in store.records(KEY)


@pytest.mark.slow
def test_of_too_many_records_the_same_few_are_read(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MOST", 3)
    for number in range(20):
        store.put(observation(run_id=f"{number}"))
    first = store.records(KEY)
    assert first == store.records(KEY)
    assert len([one for one in first if one != pin()]) == 3
    assert "21" in warned(caplog)[0]


@given(st.dictionaries(st.text("abc/.0_-", min_size=1, max_size=70), st.binary(max_size=200), max_size=5))
@settings(max_examples=30)
def test_a_fuzzed_store_never_raises(found: dict[str, bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.put(observation())
        for name, data in found.items():
            path = store.folder(KEY) / name.lstrip("/")
            if ".." in name:
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            except OSError:
                continue
        assert observation() in store.records(KEY)
        list(store.all())


def test_bundles_hold_everything_once(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert write_bundle(path, [*store.all(), *store.all()]) == 2
    assert sorted(map(write, read_bundle(path))) == sorted(map(write, store.all()))
    first = path.read_bytes()
    write_bundle(path, reversed(list(store.all())))
    assert path.read_bytes() == first
    assert len(search_bundle(path, KEY)) == 2
    assert search_bundle(path, "0" * 64) == search_bundle(tmp_path / "missing.jsonl", KEY) == []


@pytest.mark.parametrize(
    ("old", "new"), [(b'"ok"', b'"OK"'), (b"12.5", b"1.25"), (b"{", b""), (b"\n", b"\n/etc/passwd\n")]
)
def test_tampered_bundles_are_refused(
    old: bytes, new: bytes, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    write_bundle(path, store.all())
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(BundleError, match="line"):
        read_bundle(path)
    search_bundle(path, KEY)  # the same in a look-up: skipped


def test_oversized_bundles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnc.autotune import bundle

    monkeypatch.setattr(bundle, "LARGEST_BUNDLE", 100)
    path = tmp_path / "a.jsonl"
    write_bundle(path, [observation()])
    with pytest.raises(BundleError, match="bytes"):
        read_bundle(path)
    assert search_bundle(path, KEY) == []


class Entry:
    """What ``os.scandir`` yields."""

    def __init__(self, number: int) -> None:
        self.name = f"{number:064x}.json"

    def is_file(self, follow_symlinks: bool) -> bool:
        return True


class Scan:
    """A folder of as many files; ``seen`` counts those that were looked at."""

    def __init__(self, files: int) -> None:
        self.files, self.seen = files, 0

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Entry]:
        for number in range(self.files):
            self.seen = number
            yield Entry(number)


def test_a_folder_of_a_million_files_is_left_out_soon(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir, full = os.scandir, Scan(10**6)
    monkeypatch.setattr(os, "scandir", lambda path: full if Path(path).name == "obs" else scandir(path))
    begun = time.monotonic()
    assert store.records(KEY) == [pin()]
    assert time.monotonic() - begun < 5
    assert full.seen == stores.SCANNED
    assert len(warned(caplog)) == 1
    assert "obs holds more than 100000 files and is left out" in warned(caplog)[0]


def test_a_store_of_a_million_keys_is_listed_in_part(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir, full = os.scandir, Scan(10**6)
    monkeypatch.setattr(Entry, "is_dir", lambda self, follow_symlinks: True, raising=False)
    monkeypatch.setattr(os, "scandir", lambda path: full if Path(path).name == "v1" else scandir(path))
    assert list(store.key_names()) == []  # none of them is a key
    assert full.seen <= stores.SCANNED


def test_bundles_that_are_links_pipes_or_devices_are_not_looked_into(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, named_pipe, link = tmp_path / "whole.jsonl", tmp_path / "pipe.jsonl", tmp_path / "link.jsonl"
    write_bundle(whole, store.all())
    os.mkfifo(named_pipe)
    link.symlink_to(whole)
    (tmp_path / "null.jsonl").symlink_to("/dev/zero")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("pipe", "link", "null", "folder"):
        assert search_bundle(tmp_path / f"{name}.jsonl", KEY) == []
    assert len(warned(caplog)) == 4


def test_keys_are_listed_without_their_records(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = key(workload__dtype="f16")
    store.put(observation(other))
    (store.folder(KEY) / "key.json").write_text("{}")  # says nothing of this key
    monkeypatch.setattr(Store, "records", lambda *_: 1 / 0)
    assert list(store.each_key()) == [other]


def test_what_comes_with_attnc_is_whole() -> None:
    for path in packaged().glob("*.jsonl"):
        found = read_bundle(path)
        assert {name_of(dict(one.key.parts["hardware"])) for one in found} == {path.stem}
        by_key: dict[str, list[Record]] = {}
        for one in found:
            by_key.setdefault(one.key.digest, []).append(one)
        assert all(winner(records) is not None for records in by_key.values())
