"""A worker of the tuner that has no GPU: times follow from the config, some configs crash, are wrong or are refused.

With ``SIMULATED_COMPILE=real`` configs are compiled as always, which takes Triton and no GPU.
"""

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnc.autotune import worker
from attnc.autotune.problem import Problem
from attnc.autotune.record import name_of
from attnc.backends.protocol import Config

H100 = {
    "vendor": "nvidia",
    "arch": "sm_90a",
    "multiprocessors": 132,
    "shared": 232448,
    "l2": 52428800,
    "memory_gib": 79,
    "mig": False,
}


def luck(config: Config) -> float:
    """A number between 0 and 1 that each config has."""
    return random.Random(name_of(config)).random()


def microseconds(problem: Problem, config: Config) -> float:
    """Best at tiles of 2**12 pairs of two stages or three; the default is decent."""
    if not config:
        return 110.0
    apart = sum(
        abs(math.log2(setting) - {"block_m": 7, "block_n": 6, "warps": 2, "stages": 1.3}.get(name[-7:], 0)) / 8
        for name, setting in config.items()
        if isinstance(setting, int) and name[-7:] in ("block_m", "block_n", "stages")
    )
    return 100.0 * (1 + apart) * (0.9 if config.get("family", "hopper") == "hopper" else 1.0) + 5 * luck(config)


def check(problem: Problem, job: Mapping[str, Any]) -> dict[str, Any]:
    chance = luck(job["config"]) if job["config"] else 1.0
    if chance < 0.03:
        os._exit(9)
    wrong = {"status": "wrong", "message": "it is off"} if chance < 0.06 else {}
    return {"check": {"reference": "none: simulated"}, **wrong}


def measure(problem: Problem, job: Mapping[str, Any]) -> dict[str, Any]:
    times = []
    for number, config in enumerate(job["configs"]):
        if config and luck(config) < 0.01:
            os._exit(9)
        if config and luck(config) < 0.03:
            return {"status": "crash", "message": "an illegal memory access", "config": number}
        if config and luck(config) < 0.06:
            return {"status": "wrong", "message": "it is off", "config": number}
        times.append([microseconds(problem, config) * random.uniform(0.99, 1.01) for _ in range(job["rounds"])])
    return {"times": times, "clocks": {}}


def compile(problem: Problem, job: Mapping[str, Any]) -> dict[str, Any]:
    return {"rejected": "it spills" if job["config"] and luck(job["config"]) > 0.9 else None}


def command() -> Sequence[str]:
    """How to start such a worker."""
    tests = str(Path(__file__).parent)
    start = f"import sys; sys.path.insert(0, {tests!r}); import simulated_worker; simulated_worker.serve()"
    return sys.executable, "-P", "-c", start


def serve() -> None:
    """Be a worker."""
    patched: Any = worker
    patched._prepare = lambda problem, job: {}
    patched._check, patched._measure = check, measure
    if os.environ.get("SIMULATED_COMPILE") != "real":
        patched._compile = compile
    worker.main()
