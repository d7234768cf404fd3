"""Tuners on several hosts share a study in PostgreSQL: a real server, which these tests start."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_tuning_search import check_sharing, check_tuners


def find(program: str) -> str | None:
    """The path of a program of PostgreSQL: Debian keeps some of them outside of PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(program) or next((str(x / program) for x in folders if (x / program).exists()), None)


def install() -> None:
    """Debian's package, where the tests may install it: in CI, as root."""
    if find("initdb") or not os.environ.get("ATTNC_TESTS_INSTALL") or os.getuid() != 0 or not shutil.which("apt-get"):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", "postgresql"]):
        subprocess.run(["apt-get", *command], capture_output=True, check=True, timeout=600, env=environment)


def as_postgres(*command: str) -> list[str]:
    """PostgreSQL refuses to run as root."""
    return (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        if os.getuid() == 0
        else [*command]
    )


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database of a server that listens on a socket in a temporary folder only."""
    pytest.importorskip("psycopg")
    install()
    initdb, control, create = find("initdb"), find("pg_ctl"), find("createdb")
    if not (initdb and control and create):
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="attnc-pg-") as folder:
        data = str(Path(folder) / "data")
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")

        def run(*command: str) -> None:
            done = subprocess.run(as_postgres(*command), capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 0, done.stdout + done.stderr

        run(initdb, "-D", data, "-A", "trust", "-U", "tuner", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        started = [control, "-D", data, "-w", "-l", str(Path(folder) / "log"), "-o", options, "start"]
        done = subprocess.run(as_postgres(*started), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        assert done.returncode == 0, (Path(folder) / "log").read_text()
        try:
            run(create, "-h", folder, "-U", "tuner", "studies")
            yield f"postgresql+psycopg://tuner@/studies?host={folder}"
        finally:
            run(control, "-D", data, "-m", "immediate", "stop")


@pytest.mark.slow
def test_processes_share_a_database(server: str) -> None:
    check_sharing(server)


@pytest.mark.slow
def test_tuners_share_a_database(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_WAYS", "usual good slow a b c d e")
    check_tuners(server, tmp_path)
