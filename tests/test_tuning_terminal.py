"""`attnc tune` on a terminal: what it shows while it runs, Ctrl-C, and the study in Optuna's own dashboard."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from attnc.autotune.record import Observation
from attnc.autotune.search import Search
from attnc.autotune.store import Store
from attnc.backends.protocol import Choice, Space


def read_until(terminal: int, wanted: str, seconds: float) -> str:
    """What a terminal shows until ``wanted`` appears, or it is closed."""
    shown, ends = "", time.monotonic() + seconds
    while wanted not in shown and time.monotonic() < ends:
        ready, _, _ = select.select([terminal], [], [], 1.0)
        try:
            shown += os.read(terminal, 4096).decode(errors="replace") if ready else ""
        except OSError:  # closed
            break
    return shown


@pytest.mark.slow
def test_progress_is_shown_and_interruption_keeps_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    (tmp_path / "one.attn").write_text("attention one { mask causal }")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from attnc.cli import app; app()", "tune", "one.attn", "-t", "cpu"]
    options = ["-s", "H=2,N=130,D=16", "--budget", "500s", "--store", "store"]
    environment = {**os.environ, "ATTNC_CACHE_DIR": str(tmp_path / "cache"), "TERM": "xterm", "COLUMNS": "180"}
    running = subprocess.Popen(
        [*command, *options], cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = read_until(ours, "3 tried", 240)
    assert "1/1 one forward f32 1x2x2x130x130 D16" in shown
    assert "x the default" in shown
    running.send_signal(signal.SIGINT)
    rest = read_until(ours, "what was measured is kept", 120)
    assert "interrupted; what was measured is kept" in rest
    table = rest[rest.index("speed-up") :]
    assert "one forward f32" in table  # what there is
    assert running.wait(60) == 130
    os.close(ours)
    kept = [one for one in Store(tmp_path / "store").all() if isinstance(one, Observation)]
    assert sum(one.stage == "screen" for one in kept) >= 2
    assert any(one.stage == "final" and not one.config for one in kept)


@pytest.mark.slow
def test_the_dashboard_of_optuna_shows_the_study(tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    space = Space((Choice("tile", (16, 32, 64)), Choice("way", ("up", "down"))), {"tile": 16, "way": "up"})
    search = Search(space, "attnc-one", str(tmp_path / "study.journal"), 6, 0)
    while suggestion := search.ask():
        search.tell(suggestion, None if suggestion.config["way"] == "up" else float(suggestion.config["tile"]))
    app = dashboard.wsgi(JournalStorage(JournalFileBackend(str(tmp_path / "study.journal"))))

    def get(path: str) -> Any:
        said: list[str] = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "80"}
        environ |= {"QUERY_STRING": "", "wsgi.url_scheme": "http", "wsgi.errors": sys.stderr}  # type: ignore[dict-item]
        body = b"".join(app(environ, lambda status, headers, *_: said.append(status)))
        assert said == ["200 OK"], body
        return json.loads(body)

    (summary,) = get("/api/studies")["study_summaries"]
    assert summary["study_name"] == "attnc-one"
    found = get(f"/api/studies/{summary['study_id']}")
    assert len(found["trials"]) == 6
    assert {trial["state"] for trial in found["trials"]} == {"Complete", "Pruned"}
    assert {x["name"] for x in found["union_search_space"]} == {"tile", "way"}
