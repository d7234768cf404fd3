"""`attnc tune` and `attnc store`, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tuning_cases import key, observation
from typer.testing import CliRunner

from attnc.autotune.bundle import write_bundle
from attnc.autotune.store import Store
from attnc.cli import app

KEY = key().digest
SPEC = "attention one { mask causal }"


def run(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), terminal_width=200)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The user's store, with one key."""
    monkeypatch.setenv("ATTNC_TUNING_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("COLUMNS", "200")
    made = Store(tmp_path / "user")
    made.put(observation())
    made.put(observation(config={"tile": 32}, relative_to_default=0.5))
    return made


def test_listing_and_showing(store: Store) -> None:
    assert KEY[:12] in run("store", "ls")
    assert '{"tile":32}' in run("store", "ls")
    assert "2.000" in run("store", "ls")
    assert '"relative_to_default": 0.5' in run("store", "show", KEY[:8])
    assert "0 keys begin with" in run("store", "show", "zz", code=2)


def test_carrying_about(store: Store, tmp_path: Path) -> None:
    run("store", "export", tmp_path / "tuned")
    (bundle,) = (tmp_path / "tuned").iterdir()
    assert bundle.name.startswith("intel-x86_64-")
    assert "2 new of 2" in run("store", "import", bundle, "--store", tmp_path / "b")
    other = Store(tmp_path / "c")
    other.put(observation(config={"tile": 64}, relative_to_default=0.7))
    assert "3 new of 5" in run("store", "merge", tmp_path / "b", tmp_path / "c", bundle, "-o", tmp_path / "d").replace(
        "new of 5", "new of 5"
    )
    assert run("store", "push", tmp_path / "remote", "--dry-run", "--store", tmp_path / "d").startswith("3 would be")
    assert run("store", "push", tmp_path / "remote", "--store", tmp_path / "d").startswith("3 pushed")
    assert run("store", "pull", tmp_path / "remote").startswith("1 pulled, 2 there already")
    assert "nothing://x" in run("store", "pull", "nothing://x", code=3)


def test_a_bundle_that_was_tampered_with_changes_nothing(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_bundle(path, [observation(run_id="a"), observation(run_id="b")])
    path.write_bytes(path.read_bytes().replace(b'"run_id":"b"', b'"run_id":"c"'))
    assert "nothing was imported" in run("store", "import", path, code=2)
    assert len(store.records(KEY)) == 2
    assert "neither a store" in run("store", "import", tmp_path / "missing", code=2)


def test_verifying_and_cleaning(store: Store, tmp_path: Path) -> None:
    assert "2 records" in run("store", "verify")
    spoilt = store.folder(KEY) / "obs" / f"{'0' * 64}.json"
    spoilt.write_text("{}")
    assert "1 problems in 3 records" in run("store", "verify", code=1)
    assert "1 files removed" in run("store", "gc")
    assert "2 records" in run("store", "verify")
    assert "3 files removed" in run("store", "gc", "--stale")  # two records and the key: no such backend
    assert not list(store.key_names())


def test_pinning(store: Store) -> None:
    assert "never measured" in run("store", "pin", KEY[:8], "tile=64", code=2)
    run("store", "pin", KEY[:8], "--reason", "a regression")
    assert "default (pinned)" in run("store", "ls")
    run("store", "pin", KEY[:8], "tile=32")
    assert '{"tile":32} (pinned)' in run("store", "ls")
    run("store", "pin", KEY[:8], "--remove")
    assert "(pinned)" not in run("store", "ls")


def test_a_wrong_command_line_is_told(tmp_path: Path, store: Store) -> None:
    (tmp_path / "one.attn").write_text(SPEC)
    spec = tmp_path / "one.attn"
    assert "write NAME=NUMBER" in run("tune", spec, "-t", "cpu", "-s", "Z=3", code=2)
    assert "200" in run("tune", spec, "-t", "cpu", "--budget", "soon", code=2)
    assert "unknown target" in run("tune", spec, "-t", "abacus", code=2)


@pytest.mark.slow
def test_tuning_on_this_processor(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    spec = tmp_path / "one.attn"
    spec.write_text(SPEC)
    wanted: list[Any] = [spec, "-t", "cpu", "-s", "H=2,N=130,D=16"]
    assert "nothing tuned for one forward" in run("tune", *wanted, "--require-hit", code=3)
    assert "a miss" in run("store", "explain", *wanted)
    out = run("tune", *wanted, "--budget", "3", "--plot", tmp_path / "report.html", "--grad")
    assert "one forward f32 1x2x2x130x130 D16" in out
    assert "one backward f32" in out
    report = (tmp_path / "report.html").read_text()
    assert "<svg" in report
    assert "http" not in report.replace("http://www.w3.org/2000/svg", "")  # self-contained
    assert "everything is tuned" in run("tune", *wanted, "--grad", "--require-hit")
    assert "tuned:" in run("store", "explain", *wanted)
    assert "tuned before" in run("tune", *wanted, "--budget", "3", "--grad")
    again = CliRunner().invoke(app, ["store", "verify", "--rerun", *map(str, wanted)], terminal_width=200)
    assert "times as fast as the default" in " ".join(again.output.split())
    assert again.exit_code == ("no longer wins" in again.output)  # a busy machine may rank otherwise by now
    shown = [json.loads(path.read_text()) for path in (tmp_path / "user").rglob("obs/*.json")]
    measured = [one for one in shown if one["key_parts"]["space"]["backend"] == "tvm"]
    assert {one["status"] for one in measured} == {"ok"}
    assert {len(one["check"]["shapes"]) for one in measured if one["stage"] == "screen"} == {2}


def test_only_searching_needs_optuna(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else find(name, *rest)
    )
    (tmp_path / "one.attn").write_text(SPEC)
    assert "pip install 'attnc[tune]'" in run("tune", tmp_path / "one.attn", "-t", "cpu", code=3)
    program = "import sys, attnc.cli.store; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
