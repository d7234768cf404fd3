"""Results that somebody else left, wherever a call looks: refused or skipped with a line, never run, never an error."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_backend import FakeBackend, installed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tuning_runtime import FAST, TEXT, problem, qkv, records

import attnc
from attnc.autotune import lookup, places
from attnc.autotune.bundle import write_bundle
from attnc.autotune.hardware import name_of
from attnc.autotune.key import Key, key_of
from attnc.autotune.record import Record, write
from attnc.autotune.store import Store

Spoil = Callable[[dict[str, Any]], bytes]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    monkeypatch.setenv("ATTNC_TUNING_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("ATTNC_TUNED", str(tmp_path / "explicit"))
    monkeypatch.chdir(tmp_path)
    with installed(monkeypatch, tmp_path / "cache") as made:
        yield made


def spoilt(**changes: Any) -> Spoil:
    return lambda good: json.dumps(good | changes).encode()


HOSTILE: dict[str, Spoil] = {
    "the future": spoilt(schema=2, new_field=[1]),
    "truncated": lambda good: json.dumps(good).encode()[:-30],
    "outside the space": spoilt(config={"tile": 17, "way": "down"}),
    "unknown choice": spoilt(config={"tile": 64, "way": "down", "backdoor": 1}),
    "code": spoilt(config={"tile": 64, "way": "__import__('os').system('touch pwned')"}),
    "a path": spoilt(config={"tile": 64, "way": "../../../../tmp/x.so"}),
    "a pickle": lambda good: b"cos\nsystem\n(S'touch pwned'\ntR.",
    "deep": lambda good: b"[" * 20_000,
    "huge": lambda good: json.dumps(good | {"environment": {"x": "y" * 100_000}}).encode(),
    "not a number": lambda good: json.dumps(good | {"relative_to_default": float("nan")}).encode(),
    "key of another": spoilt(key="0" * 64),
    "parts of another": lambda good: json.dumps(good).replace('"f32"', '"f64"').encode(),
    "empty": lambda good: b"",
}


def leave(where: Path, record: Record, spoil: Spoil, truthful: bool) -> None:
    """A spoilt record in a store, in the place of its key; ``truthful`` if its name is its digest."""
    data = spoil(json.loads(write(record)))
    name = hashlib.sha256(data if truthful else write(record)).hexdigest()
    path = Store(where).folder(record.key.digest) / "obs" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def leave_bundle(where: Path, record: Record, spoil: Spoil, truthful: bool) -> None:
    """The same as a line of a bundle, in the file of its hardware."""
    data = spoil(json.loads(write(record)))
    name = hashlib.sha256(data if truthful else write(record)).hexdigest()
    where.mkdir(parents=True, exist_ok=True)
    with (where / f"{name_of(dict(record.key.parts['hardware']))}.jsonl").open("ab") as file:
        file.write(name.encode() + b" " + data + b"\n")


@pytest.mark.parametrize("truthful", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_call_goes_on_with_the_default(
    name: str, truthful: bool, backend: FakeBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = key_of(problem().request())
    for record in records(key):
        leave(places.user_store().root, record, HOSTILE[name], truthful)
        leave(tmp_path / "explicit", record, HOSTILE[name], truthful)
        leave_bundle(tmp_path / "attnc_tuned", record, HOSTILE[name], truthful)
    for tune in ("cached", "compatible"):
        q, k, v = qkv()
        op = attnc.loads(TEXT, tune=tune)
        torch.testing.assert_close(op(q, k, v), op.reference(q, k, v))
    assert set(map(str, backend.configs)) == {"{}"}
    assert not (tmp_path / "pwned").exists()
    assert all("\n" not in one.getMessage() for one in caplog.records)
    if name not in ("outside the space", "unknown choice") or not truthful:
        assert [one for one in caplog.records if one.levelno == logging.WARNING], "and says so"


def test_good_records_beside_bad_ones_are_used(backend: FakeBackend, tmp_path: Path) -> None:
    key = key_of(problem().request())
    for name in HOSTILE:
        leave(places.user_store().root, records(key)[1], HOSTILE[name], truthful=False)
        leave(places.user_store().root, records(key)[1], HOSTILE[name], truthful=True)
    places.user_store().merge(records(key))
    attnc.loads(TEXT)(*qkv())
    assert backend.configs == [FAST]


def test_another_machine_and_links_out_are_misses(backend: FakeBackend, tmp_path: Path) -> None:
    key = key_of(problem().request())
    other = Key.of({**key.parts, "hardware": {**key.parts["hardware"], "cores": 999}})
    places.user_store().merge(records(other))
    whole = Store(tmp_path / "elsewhere")
    whole.merge(records(key))
    obs = Store(tmp_path / "explicit").folder(key.digest) / "obs"
    obs.mkdir(parents=True)
    for path in (whole.folder(key.digest) / "obs").iterdir():
        (obs / path.name).symlink_to(path)
    file = f"{name_of(dict(key.parts['hardware']))}.jsonl"
    write_bundle(tmp_path / "other" / file, records(key))
    (tmp_path / "attnc_tuned").mkdir()
    (tmp_path / "attnc_tuned" / file).symlink_to(tmp_path / "other" / file)
    attnc.loads(TEXT)(*qkv())
    assert backend.configs == [{}]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.mkdir(), lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_a_miss(make: Callable[[Path], None], backend: FakeBackend, tmp_path: Path) -> None:
    key = key_of(problem().request())
    obs = places.user_store().folder(key.digest) / "obs"
    obs.mkdir(parents=True)
    make(obs / f"{'0' * 64}.json")
    make(places.user_store().folder(key.digest) / "key.json")
    (tmp_path / "attnc_tuned").mkdir()
    make(tmp_path / "attnc_tuned" / f"{name_of(dict(key.parts['hardware']))}.jsonl")
    attnc.loads(TEXT, tune="compatible")(*qkv())
    assert backend.configs == [{}]


names = st.sampled_from(["obs", "pins", "key.json", "obs/" + "0" * 64 + ".json", "pins/" + "1" * 64 + ".json"])


@given(st.lists(st.tuples(names, st.binary(max_size=400)), max_size=5), st.binary(max_size=400), st.randoms())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_fuzzed_places_never_raise(
    backend: FakeBackend, tmp_path: Path, found: list[tuple[str, bytes]], line: bytes, random: Any
) -> None:
    request = problem().request()
    key = key_of(request)
    root = tmp_path / f"fuzz-{random.randrange(2**60)}"
    good = write(records(key)[1])
    torn = bytearray(good)
    for _ in range(random.randrange(1, 20)):
        torn[random.randrange(len(torn))] = random.randrange(256)
    for name, data in [*found, (f"obs/{hashlib.sha256(torn).hexdigest()}.json", bytes(torn))]:
        path = Store(root).folder(key.digest) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError:
            continue
    bundle = root.with_suffix(".jsonl")
    bundle.write_bytes(line + b"\n" + b"0" * 64 + b" " + bytes(torn) + b"\n" + line)
    assert lookup.find(request, key, [root, bundle]) is None or backend.space(None, None, None, {})  # type: ignore[arg-type]
    list(places.everything(Store(root)))
