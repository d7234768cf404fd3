"""Remote stores: a folder, and a server on this machine that is reached through the network."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuning_cases import key, observation, pin

from attnc.autotune import places
from attnc.autotune.record import write
from attnc.autotune.remote import Remote, Transfer
from attnc.autotune.store import Store

KEY = key().digest


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The URL of an FTP server for an empty folder ``tmp_path / "served"``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of asyncore
        from pyftpdlib.authorizers import DummyAuthorizer
        from pyftpdlib.handlers import FTPHandler
        from pyftpdlib.servers import ThreadedFTPServer

    (tmp_path / "served").mkdir()

    class Handler(FTPHandler):  # type: ignore[misc, unused-ignore]
        authorizer = DummyAuthorizer()

    Handler.authorizer.add_user("tuner", "secret", str(tmp_path / "served"), perm="elradfmwM")
    server = ThreadedFTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"timeout": 0.05}, daemon=True)
    thread.start()
    yield f"ftp://tuner:secret@127.0.0.1:{server.address[1]}/results"
    server.close_all()
    thread.join(10)


@pytest.fixture(params=["folder", "network"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        (tmp_path / "served").mkdir()
        return (tmp_path / "served" / "results").as_uri()
    return str(request.getfixturevalue("served"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "one")
    for one in (observation(), observation(config={"tile": 32}, relative_to_default=0.5), pin()):
        made.put(one)
    made.put(observation(key(workload__dtype="f16")))
    return made


def contents(store: Store) -> list[bytes]:
    return sorted(map(write, store.all()))


def test_what_is_pushed_can_be_pulled(url: str, store: Store, tmp_path: Path) -> None:
    assert Remote(url).push(store, dry=True) == Transfer(4, 0, 0)
    assert Remote(url).keys() == []
    assert Remote(url).push(store) == Transfer(4, 0, 0)
    assert Remote(url).push(store) == Transfer(0, 4, 0)
    other = Store(tmp_path / "two")
    assert Remote(url).pull(other, dry=True) == Transfer(4, 0, 0)
    assert not (tmp_path / "two").exists()
    assert Remote(url).pull(other, [KEY]) == Transfer(3, 0, 0)
    assert Remote(url).pull(other) == Transfer(1, 3, 0)
    assert contents(other) == contents(store)


def test_what_is_no_record_is_not_pulled(url: str, store: Store, tmp_path: Path) -> None:
    Remote(url).push(store)
    obs = tmp_path / "served" / "results" / "v1" / KEY[:2] / KEY / "obs"
    first, second = sorted(obs.iterdir())
    first.write_bytes(first.read_bytes()[:100])  # torn
    second.write_bytes(b" " * 10**6)
    (obs / "..%2fescape.json").write_bytes(b"{}")
    (obs / ("0" * 64 + ".json")).write_bytes(write(observation()))
    other = Store(tmp_path / "two")
    assert Remote(url).pull(other, [KEY]) == Transfer(1, 0, 3)
    assert other.records(KEY) == [pin()]


def test_a_remote_that_fails_degrades_to_what_is_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ATTNC_TUNED_REMOTE", "ftp://tuner:secret@127.0.0.1:9/nothing")
    monkeypatch.setenv("ATTNC_TUNING_DIR", str(tmp_path / "user"))
    places._remote_seen.cache_clear()
    for _ in range(2):
        assert all(source(key()) == [] for _, source in places.sources())
    assert sum("cannot be used" in one.getMessage() for one in caplog.records) == 1


def test_a_remote_is_asked_once_for_a_key(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Remote(url).push(store)
    monkeypatch.setenv("ATTNC_TUNED_REMOTE", url)
    monkeypatch.setenv("ATTNC_TUNING_DIR", str(tmp_path / "user"))
    places._remote_seen.cache_clear()
    found = dict(places.sources())
    assert len(found[url](key())) == 3
    assert len(Store(tmp_path / "user").records(KEY)) == 3
