"""How long kernels take: in turns, so that whatever else happens on the machine happens to all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnc.autotune.check import LOOSER, TOLERANCE, Pullback, difference, empty_output, empty_rows, run_forward
from attnc.autotune.data import Call, make_call
from attnc.autotune.given import given_call
from attnc.autotune.problem import Problem
from attnc.backends.protocol import Config

FLUSH = 256 * 2**20
"""Bytes that are written between calls on a GPU, so that each finds its L2 cold."""
SHORTEST = 5e-4
"""Seconds that are timed at once on a CPU: shorter calls are repeated."""
FEWEST = 3

Prepared = tuple[Callable[[], None], Callable[[], Sequence[Tensor]]]


class Wrong(Exception):
    """A kernel that is right on small sizes is not on those that are measured."""


class Broken(Exception):
    """A kernel cannot be run at the sizes that are measured; the cause is what it raised."""


def measure(problem: Problem, configs: Sequence[Config], rounds: int, seconds: float) -> list[list[float]]:
    """Microseconds of single calls of each config, taking turns in an order that alternates.

    There are ``rounds`` rounds, or fewer (at least three) when ``seconds`` are over. The first config is the default;
    what others compute is compared with what it does.

    Raises:
        Wrong: a config computes something else than the first. ``args`` hold why and which.
        Broken: a config cannot be run. ``args`` hold which.
    """
    call = given_call(problem) if problem.tensors else make_call(problem, problem.sizes, seed=2)
    calls: list[Callable[[], None]] = []
    expected: list[Tensor] = []
    for number, config in enumerate(configs):
        try:
            run, results = _prepare(problem, config, call)
            run()
            if problem.target.kind != "cpu":  # what goes wrong on the device is known afterwards only
                torch.cuda.synchronize()
        except Exception as error:
            raise Broken(number) from error
        found = [x.clone() for x in results()] if number == 0 else list(results())
        expected = expected or found
        _compare(problem, found, expected, number)
        calls.append(run)
    timer = _cpu_timer(calls) if problem.target.kind == "cpu" else _gpu_timer()
    times: list[list[float]] = [[] for _ in configs]
    begun = time.perf_counter()
    for turn in range(rounds):
        if turn >= FEWEST and time.perf_counter() - begun > seconds:
            break
        for number in range(len(calls))[:: 1 if turn % 2 else -1]:
            times[number].append(timer(calls[number]))
    return times


def clocks(problem: Problem) -> dict[str, float]:
    """Least and most clock of the cores right now, in MHz; empty where it is not known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = [float(line.split(":")[1]) for line in file if line.startswith("cpu MHz")]
    except OSError:
        return {}
    if problem.target.kind != "cpu":
        try:
            found = [float(torch.cuda.clock_rate())]
        except Exception:  # the management library is not installed
            return {}
    return {"min": min(found), "max": max(found)} if found else {}


def _prepare(problem: Problem, config: Config, call: Call) -> Prepared:
    choose = problem.with_config(config)
    if problem.direction == "backward":
        pullback = Pullback(problem, problem.training(choose), call)
        return pullback.run, lambda: pullback.results
    training = problem.training(choose) if problem.wants else None
    kernel: Any = problem.kernel(choose)
    out, rows = empty_output(problem, call), empty_rows(problem, call, training)
    return lambda: run_forward(problem, kernel, call, out, rows), lambda: [out, *rows]


def _compare(problem: Problem, found: Sequence[Tensor], expected: Sequence[Tensor], number: int) -> None:
    tolerance = 2 * LOOSER * TOLERANCE[problem.workload.dtype]
    for result, right in zip(found, expected, strict=True):
        error, scale = difference(result, right)
        if error > tolerance * scale:
            raise Wrong(f"it differs from the default by {error:.2g} on the sizes measured", number)


def _cpu_timer(calls: Sequence[Callable[[], None]]) -> Callable[[Callable[[], None]], float]:
    begun = time.perf_counter()
    calls[0]()
    once = max(1e-6, time.perf_counter() - begun)
    repeats = max(1, round(SHORTEST / once))

    def timed(call: Callable[[], None]) -> float:
        begun = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - begun) / repeats * 1e6

    return timed


def _gpu_timer() -> Callable[[Callable[[], None]], float]:
    flush = torch.empty(FLUSH, dtype=torch.int8, device="cuda")

    def timed(call: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3

    return timed
