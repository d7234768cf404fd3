"""Attention on this machine's CPU: attnc, torch's SDPA and compiled FlexAttention, taking turns on the same cores.

On one thread and on as many as torch takes by itself. Writes ``results/cpu.json``. Ratios are the peer's time to ours
(above 1: we are faster); absolute times say little beyond this machine. ``--quick`` uses small sizes, to see that
everything runs.
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
from peak import peaks
from record import write
from rich.console import Console
from rich.table import Table
from torch import Tensor

import attnc

CPU = torch.device("cpu")
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
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


def compare(case: Case, shape: Shape, dtype: str, rounds: int, peer: bool) -> dict[str, Any]:
    """A forward: checked first, then timed beside the peers; ``peer`` says whether FlexAttention is one."""
    q, k, v = tensors(shape, DTYPES[dtype], CPU)
    inputs: dict[str, Any] = case.inputs(shape, CPU)
    op = attnc.loads(case.spec)
    error = check(case, op, op(q, k, v, **inputs), q, k, v, inputs)
    calls: dict[str, Callable[[], Any]] = {"attnc": lambda: op(q, k, v, **inputs)}
    missing = {}
    if (sdpa := sdpa_call(case, shape, q, k, v)) is not None:
        calls["sdpa"] = sdpa
    if case.flex and peer:
        try:
            calls["flex"] = flex_call(case, shape, inputs, q, k, v)
            calls["flex"]()
        except Exception as error_of_peer:  # a peer that cannot is a result, not a failure of ours
            calls.pop("flex", None)
            missing["flex"] = str(error_of_peer).strip().splitlines()[0][:200]
    found = row(case.name, shape, dtype, measure(calls, rounds))
    rate = flops(case, shape, inputs) / found["seconds"]["attnc"]["median"] / 1e9
    return {**found, "error": error, "gflops": rate, "missing": missing}


def backward(case: Case, shape: Shape, dtype: str, rounds: int) -> dict[str, Any]:
    """The gradients of q, k and v beside those of SDPA; operations are counted as five products."""
    q, k, v = (x.requires_grad_() for x in tensors(shape, DTYPES[dtype], CPU))
    inputs: dict[str, Any] = case.inputs(shape, CPU)
    op = attnc.loads(case.spec)
    results = {"attnc": op(q, k, v, **inputs)}
    if (sdpa := sdpa_call(case, shape, q, k, v)) is not None:
        results["sdpa"] = sdpa()
    cotangent = torch.randn_like(results["attnc"])

    def gradients(result: Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(result, (q, k, v), cotangent, retain_graph=True)

    calls = {name: gradients(result) for name, result in results.items()}
    ours, theirs = (calls[name]() for name in ("attnc", "sdpa")) if sdpa else ((), ())
    error = max((float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    found = row(f"{case.name} backward", shape, dtype, measure(calls, rounds))
    rate = 2.5 * flops(case, shape, inputs) / found["seconds"]["attnc"]["median"] / 1e9
    return {**found, "error": error, "gflops": rate, "missing": {}}


def decode(shape: Shape, dtype: str, rounds: int) -> dict[str, Any]:
    """One query a head over all keys: what counts is how fast keys and values are read."""
    q, k, v = tensors(shape, DTYPES[dtype], CPU)
    q = q[:, :, :1].contiguous()
    op = attnc.loads("attention full {}")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    error = float((op(q, k, v).double() - op.reference(q.double(), k.double(), v.double())).abs().max())
    found = row("decode", shape, dtype, measure({"attnc": lambda: op(q, k, v), "sdpa": lambda: sdpa(q, k, v)}, rounds))
    read = (k.nbytes + v.nbytes) / found["seconds"]["attnc"]["median"] / 1e9
    return {**found, "error": error, "gbytes": read, "missing": {}}


def row(name: str, shape: Shape, dtype: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """What every row of the results has."""
    medians = {peer: statistics.median(values) for peer, values in seconds.items()}
    return {
        "case": name,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "shape": {size: getattr(shape, size) for size in ("B", "H", "G", "N", "D")},
        "seconds": {peer: {"median": medians[peer], "all": values} for peer, values in seconds.items()},
        "ratio": {peer: medians[peer] / medians["attnc"] for peer in medians if peer != "attnc"},
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


def table(rows: list[dict[str, Any]], peak: dict[int, dict[str, float]]) -> Table:
    """The measured ratios, and the part of the machine's peak: of multiply-adds, in decoding of reading memory."""
    shown = Table("case", "threads", "dtype", "N", "D", "ms", "of peak", "SDPA / ours", "Flex / ours")
    for found in rows:
        ratio, most = found["ratio"], peak[found["threads"]]
        part = found["gflops"] / most["fma"] if "gflops" in found else found["gbytes"] / most["read"]
        shown.add_row(
            found["case"],
            str(found["threads"]),
            found["dtype"],
            str(found["shape"]["N"]),
            str(found["shape"]["D"]),
            f"{1e3 * found['seconds']['attnc']['median']:.1f}",
            f"{part:.2f}",
            *(f"{ratio[peer]:.2f}" if peer in ratio else "-" for peer in ("sdpa", "flex")),
        )
    return shown


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only these")
    parser.add_argument("--keys", type=int, action="append", help="how many keys, instead of 512, 2048 and 8192")
    parser.add_argument("--no-flex", action="store_true", help="without FlexAttention, which takes long to compile")
    given = parser.parse_args()
    console = Console()
    rounds = 3 if given.quick else given.rounds
    keys = [128] if given.quick else given.keys or [512, 2048, 8192]
    cases = [case for case in CASES if not given.case or case.name in given.case]
    everything = torch.get_num_threads()
    peak: dict[int, dict[str, float]] = {}
    rows = []
    load = os.getloadavg()  # of what else runs here
    with console.status("measuring") as status:
        for threads in dict.fromkeys((1, everything)):
            torch.set_num_threads(threads)
            peak[threads] = peaks()
            for n, d, dtype in itertools.product(keys, (64, 128), DTYPES):
                shape = Shape(1, 8, 8, n, d)
                for case in cases:
                    status.update(f"{case.name} {dtype} N={n} D={d}, {threads} threads")
                    torch.compiler.reset()
                    peer = threads == everything and not given.no_flex
                    rows.append(compare(case, shape, dtype, rounds, peer))
                    if case.sdpa is not None:
                        rows.append(backward(case, shape, dtype, rounds))
                rows.append(decode(shape, dtype, 3 * rounds))
        status.update("memory and latency")
        others = [memory(1024 if given.quick else 16384), latency()]
    console.print(table(rows, peak))
    for found in others:
        console.print(json.dumps(found))
    if not given.quick:
        settings = {"rounds": rounds, "peak": peak, "load": load}
        console.print(f"written to {write('cpu', CPU, settings, rows + others)}")


if __name__ == "__main__":
    main()
