"""Attention on this machine's CPU: attnc, torch's SDPA and compiled FlexAttention, taking turns on the same cores.

Writes ``results/cpu.json``. Ratios are ours to the peer's (above 1: we are faster); absolute times say little beyond
this machine. ``--quick`` uses small sizes, to see that everything runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from cases import CASES, Case, Shape, check, flex_call, flops, sdpa_call, tensors
from record import write
from rich.console import Console
from rich.table import Table
from torch import Tensor

import attnc

CPU = torch.device("cpu")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def measure(calls: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; the calls take turns, in an order that alternates."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            begun = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def compare(case: Case, shape: Shape, dtype: str, rounds: int) -> dict[str, Any]:
    """One row of the results: checked first, then timed beside the peers."""
    q, k, v = tensors(shape, DTYPES[dtype], CPU)
    inputs: dict[str, Any] = case.inputs(shape, CPU)
    op = attnc.loads(case.spec)
    error = check(case, op, op(q, k, v, **inputs), q, k, v, inputs)
    calls: dict[str, Callable[[], Tensor]] = {"attnc": lambda: op(q, k, v, **inputs)}
    missing = {}
    if (sdpa := sdpa_call(case, shape, q, k, v)) is not None:
        calls["sdpa"] = sdpa
    if case.flex:
        try:
            calls["flex"] = flex_call(case, shape, inputs, q, k, v)
            calls["flex"]()
        except Exception as error_of_peer:  # a peer that cannot is a result, not a failure of ours
            calls.pop("flex", None)
            missing["flex"] = str(error_of_peer).strip().splitlines()[0][:200]
    seconds = measure(calls, rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "case": case.name,
        "dtype": dtype,
        "shape": {name: getattr(shape, name) for name in ("B", "H", "G", "N", "D")},
        "error": error,
        "seconds": {name: {"median": medians[name], "all": values} for name, values in seconds.items()},
        "gflops": flops(case, shape, inputs) / medians["attnc"] / 1e9,
        "ratio": {name: medians[name] / medians["attnc"] for name in medians if name != "attnc"},
        "missing": missing,
    }


MEMORY = """
import sys, torch, attnc
N, D = map(int, sys.argv[1:])

def resident(which):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(which))

op = attnc.loads("attention causal { mask causal }")
small = torch.randn(1, 1, 64, D)
op(small, small, small)
q, k, v = (torch.randn(1, 1, N, D) for _ in range(3))
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # the high-water mark starts anew
before = resident("VmRSS")
out = op(q, k, v)
print(max(0, resident("VmHWM") - before - out.nbytes))
"""

LATENCY = """
import time
begun = time.perf_counter()
import torch
imported = time.perf_counter()
import attnc
op = attnc.loads("attention fresh { mask causal and i - j < 1000  score softcap(dot(q, k) * scale, 31.5) }")
q = torch.randn(1, 2, 128, 64)
op(q, q, q)
print(time.perf_counter() - imported)
"""


def in_fresh_process(program: str, *arguments: object, cache: str) -> float:
    """What a program prints, run in its own process with its own kernel cache."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "ATTNC_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def memory(n: int, d: int = 64) -> dict[str, Any]:
    """Peak memory of one call beyond its inputs and output, and what a square of scores would take."""
    with tempfile.TemporaryDirectory() as cache:
        extra = in_fresh_process(MEMORY, n, d, cache=cache)
    return {"case": "memory", "N": n, "D": d, "extra_bytes": extra, "one_square_bytes": 4 * n * n}


def latency() -> dict[str, Any]:
    """Seconds from ``loads`` to the first result: nothing cached, then from the cache on disk. Torch is imported."""
    with tempfile.TemporaryDirectory() as cache:
        cold = in_fresh_process(LATENCY, cache=cache)
        warm = min(in_fresh_process(LATENCY, cache=cache) for _ in range(3))
    return {"case": "latency", "cold_seconds": cold, "warm_seconds": warm}


def table(rows: list[dict[str, Any]]) -> Table:
    """The measured ratios."""
    shown = Table("case", "dtype", "N", "D", "ms", "GFLOP/s", "SDPA / ours", "Flex / ours")
    for row in rows:
        ratio = row["ratio"]
        shown.add_row(
            row["case"],
            row["dtype"],
            str(row["shape"]["N"]),
            str(row["shape"]["D"]),
            f"{1e3 * row['seconds']['attnc']['median']:.1f}",
            f"{row['gflops']:.0f}",
            *(f"{ratio[peer]:.2f}" if peer in ratio else "-" for peer in ("sdpa", "flex")),
        )
    return shown


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only these")
    given = parser.parse_args()
    console = Console()
    rounds = 3 if given.quick else given.rounds
    shapes = [Shape(1, 2, 2, 256 if given.quick else n, d) for n in (1024, 4096) for d in (64, 128)]
    cases = [case for case in CASES if not given.case or case.name in given.case]
    rows = []
    with console.status("measuring") as status:
        for case, shape, dtype in itertools.product(cases, dict.fromkeys(shapes), DTYPES):
            status.update(f"{case.name} {dtype} N={shape.N} D={shape.D}")
            torch.compiler.reset()
            rows.append(compare(case, shape, dtype, rounds))
        status.update("memory and latency")
        others = [memory(1024 if given.quick else 16384), latency()]
    console.print(table(rows))
    for row in others:
        console.print(json.dumps(row))
    if not given.quick:
        console.print(f"written to {write('cpu', CPU, {'rounds': rounds}, rows + others)}")


if __name__ == "__main__":
    main()
