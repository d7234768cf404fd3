"""The process that compiles and measures: a JSON job a line in, a JSON answer a line out.

What hangs is killed from outside, what crashes ends this process and not the search.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from typing import Any

from attnc.autotune.pool import READY
from attnc.autotune.problem import Problem, problem_from_json
from attnc.jit import Checked


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever kernels and compilers print is no answer
    answers.write(READY)
    answers.flush()
    for line in sys.stdin:
        answer = serve(json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer["status"] == "crash":
            os._exit(1)


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job; its answer has a ``status`` of a record, and a ``message`` unless that is ``ok``."""
    problem = problem_from_json(job["problem"], _read)
    doing = {"prepare": _prepare, "compile": _compile, "check": _check, "measure": _measure}[job["do"]]
    begun = time.perf_counter()
    try:
        answer = doing(problem, job)
    except MemoryError as error:
        answer = {"status": "oom", "message": str(error)}
    except Exception as error:
        answer = {"status": _status(job["do"], error), "message": f"{type(error).__name__}: {error}"[:300]}
    return {"status": "ok", **answer, "seconds": time.perf_counter() - begun}


def _compile(problem: Problem, job: dict[str, Any]) -> dict[str, Any]:
    from attnc.targets import backend_for

    kernel = problem.kernel(problem.with_config(job["config"]))
    backend = backend_for(problem.target, problem.backend)
    return {"rejected": backend.rejection(kernel, problem.target) if job["config"] else None}


def _prepare(problem: Problem, job: dict[str, Any]) -> dict[str, Any]:
    """Import what measuring needs, and wake the device."""
    from attnc.autotune.check import reference
    from attnc.autotune.data import awkward_sizes, make_call

    call = make_call(problem, awkward_sizes(problem)[0], seed=0)
    reference(problem, call, call.q, call.k, call.v, call.inputs)
    return {}


def _check(problem: Problem, job: dict[str, Any]) -> dict[str, Any]:
    from attnc.autotune.check import check

    found = check(problem, job["config"], job["seed"])
    wrong = found.pop("wrong")
    return {"check": found, **({"status": "wrong", "message": wrong} if wrong else {})}


def _measure(problem: Problem, job: dict[str, Any]) -> dict[str, Any]:
    from attnc.autotune.bench import Broken, Wrong, clocks, measure

    try:
        times = measure(problem, job["configs"], job["rounds"], job["seconds"])
    except Wrong as error:
        return {"status": "wrong", "message": error.args[0], "config": error.args[1]}
    except Broken as error:
        cause = error.__cause__
        assert isinstance(cause, Exception), "raised from what went wrong"
        told = f"{type(cause).__name__}: {cause}"[:300]
        return {"status": _status("measure", cause), "message": told, "config": error.args[0]}
    return {"times": times, "clocks": clocks(problem)}


def _status(doing: str, error: Exception) -> str:
    """A device may be of no more use after an error on it, so this counts as a crash, and the process ends."""
    if "OutOfMemory" in type(error).__name__:
        return "oom"
    return "compile_error" if doing == "compile" else "crash"


@functools.lru_cache(16)
def _read(text: str) -> Checked:
    from attnc.ir.reader import read_program

    return Checked.of(read_program(text))


if __name__ == "__main__":
    main()
