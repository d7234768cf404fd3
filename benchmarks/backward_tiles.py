"""Times tile shapes of the portable kernels of a backward on the GPU here, each walk apart, beside FlexAttention.

The tables in ``backends/triton/configs.py`` are chosen by it. Configurations are compiled beforehand in parallel, those
that do not fit or spill in a step are left out; each is checked at a small size, then all take turns. A walk over the
keys (dQ) is timed as the backward of q alone, one over the rows (dK, dV) as that of k and v; both include the maps.
``python benchmarks/backward_tiles.py [--seconds 170] [--D 128] [--case causal] [--out FILE]``
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from backward_kernels import (
    Problem,
    Subject,
    checked,
    compiled,
    compiled_forward,
    faults,
    ready,
    ready_forward,
)
from cases import Shape, flops
from gpu import measure
from gpu_backward import peers
from record import RESULTS, environment

from attnc.backends.protocol import Target
from attnc.backends.triton.compiling_backward import CompiledBackward
from attnc.backends.triton.configs import Config
from attnc.targets import target_of_device

SIZES = ((8, 4096), (2, 16384))
WANTED = {"keys": ("q",), "rows": ("k", "v")}


def candidates(over: str, D: int) -> Iterator[Config]:
    """Outer and inner tokens, warps and stages whose accumulators leave room for two tiles of pairs."""
    sums = 1 if over == "keys" else 2
    for outer, inner, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (1, 2, 3)):
        a_thread = (sums * outer * D + 2 * outer * inner) // (32 * warps)
        shared = 2 * D * (2 * outer + 2 * inner * stages)
        if a_thread > 192 or a_thread < 48 or shared > 220_000:
            continue
        yield Config(outer, inner, warps, stages) if over == "keys" else Config(inner, outer, warps, stages)


def label(config: Config) -> str:
    return f"{config.block_m}x{config.block_n} {config.warps}w {config.stages}s"


def main() -> None:
    """Compile, check, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="full and causal if not given")
    parser.add_argument("--D", action="append", type=int, help="128 and 64 if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=170.0, help="begin nothing after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile-only", action="store_true", help="for sm_90, on any machine")
    parser.add_argument("--out", type=Path, default=RESULTS / "backward-tiles.jsonl")
    given = parser.parse_args()
    begun = time.monotonic()
    target = Target("cuda", "sm_90") if given.compile_only else target_of_device("cuda")
    cells = list(itertools.product(given.D or (128, 64), given.case or ("full", "causal"), ("rows", "keys")))
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool, given.out.open("a") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        forwards = {}
        made = {}
        for D, case, over in cells:
            subject = Subject(case, D, wanted=WANTED[over])
            forwards[subject] = pool.submit(compiled_forward, subject, target)
            other = Config(32, 32, 4, 1)
            made[subject] = {
                config: pool.submit(compiled, subject, target, {"keys": other, "rows": other, over: config})
                for config in candidates(over, D)
            }
        if not given.compile_only:
            write({"environment": environment(torch.device("cuda")), "rounds": given.rounds})
        for (D, case, over), subject in zip(cells, made, strict=True):
            kernels = {}
            for config, future in made[subject].items():
                found = future.result()
                why = found if isinstance(found, str) else "; ".join(faults(found))
                if why:
                    write({"case": case, "D": D, "over": over, "config": label(config), "why": why})
                elif isinstance(found, CompiledBackward):
                    kernels[config] = found
            print(f"{case} D {D} over {over}: {len(kernels)} of {len(made[subject])} configurations fit", flush=True)
            if given.compile_only:
                print("  " + ", ".join(map(label, kernels)), flush=True)
                continue
            forward = ready_forward(forwards[subject].result(), target)
            for B, N in SIZES:
                if time.monotonic() - begun > given.seconds:
                    print("out of time", flush=True)
                    return
                shape = Shape(B, 2048 // D, 2048 // D, N, D)
                problem = Problem(subject, shape, forward)
                pulls: dict[str, Callable[[], Any]] = {}
                for config, found in kernels.items():
                    kernel = ready(found, target)
                    if SIZES[0][1] == N:
                        checked(subject, forward, kernel)
                    pulls[label(config)] = problem.pull(kernel)
                if over == "keys":  # once for both walks: it is of the whole backward
                    whole = peers(problem).get("flex")
                    pulls |= {"flex, whole": whole} if whole else {}
                times = {name: statistics.median(spent) for name, spent in measure(pulls, given.rounds).items()}
                work = flops(problem.case, shape, problem.inputs) * {"keys": 1.5, "rows": 2.0}[over]
                rows = sorted((spent, name) for name, spent in times.items())
                write({"case": case, "D": D, "N": N, "over": over, "milliseconds": times})
                print(f"{case} D {D} N {N} over {over}, milliseconds (TFLOP/s of its own products):", flush=True)
                for spent, name in rows[:8]:
                    print(f"  {name:14} {spent:8.3f}  {work / spent / 1e9:6.0f}", flush=True)
                del problem, pulls
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
