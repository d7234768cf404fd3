"""Worker processes from the outside: started when needed, killed when they hang, replaced when they die."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

COMMAND = (sys.executable, "-P", "-m", "attnc.autotune.worker")
"""``-P``: whatever lies in the working folder is not imported."""
READY = "ready\n"
"""What a worker says when it has begun."""
STARTING = 120.0
"""Seconds that a fresh process may take until it is ready for its first job."""


class Worker:
    """One process that does one job at a time; threads wait for each other."""

    def __init__(self, command: Sequence[str] = COMMAND, environment: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()
        self._errors: IO[bytes] | None = None

    def ask(self, job: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The answer to a job; ``status`` is ``timeout`` where none came in time, ``crash`` where the process died."""
        with self._turn:
            try:
                return self._ask(job, timeout)
            except BaseException:  # interrupted: the answer to this job must not become that to the next
                self.close()
                raise

    def _ask(self, job: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        fresh = self._process is None
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = _line_within(process.stdout, STARTING) if fresh else READY
            if line:
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                line = _line_within(process.stdout, timeout)
        except OSError:
            line = ""
        if line is None:
            self.close()
            return {"status": "timeout", "message": f"no answer within {timeout:.0f} s"}
        if not line:
            code = process.wait()
            said = self._last_words()
            self.close()
            return {"status": "crash", "message": f"the process ended with {_ending(code)}{said}"}
        answer: dict[str, Any] = json.loads(line)
        if answer["status"] == "crash":
            self.close()
        return answer

    def close(self) -> None:
        """End the process and whatever it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, self._errors):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()

    def _last_words(self) -> str:
        """The last line that the process wrote to its standard error."""
        if self._errors is None:
            return ""
        end = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, end - 1000))
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:200]}" if last else ""

    def _start(self) -> subprocess.Popen[str]:
        """A process of its own session, so that Ctrl-C reaches this one only."""
        if not os.environ.get("ATTNC_TUNE_DEBUG"):
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=self._environment,
            start_new_session=True,
        )
        return self._process


class Pool:
    """Several workers; :meth:`ask` may be called from as many threads."""

    def __init__(self, count: int, command: Sequence[str] = COMMAND, environment: Mapping[str, str] | None = None):
        self._free = [Worker(command, environment) for _ in range(count)]
        self._all = tuple(self._free)
        self._some = threading.Semaphore(count)
        self._lock = threading.Lock()

    def ask(self, job: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """As :meth:`Worker.ask`, by the next worker that is free."""
        with self._some:
            with self._lock:
                worker = self._free.pop()
            try:
                return worker.ask(job, timeout)
            finally:
                with self._lock:
                    self._free.append(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in self._all:
            worker.close()


@contextlib.contextmanager
def exclusively(device: str) -> Any:
    """Wait until no other process measures on ``device``; one bench process a device."""
    import fcntl

    path = Path(tempfile.gettempdir()) / f"attnc-bench-{os.getuid()}-{device}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _line_within(stream: IO[str], seconds: float) -> str | None:
    """The next line of a stream that gives one line an answer; ``None`` if it does not come."""
    ready, _, _ = select.select([stream], [], [], seconds)
    return stream.readline() if ready else None


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
