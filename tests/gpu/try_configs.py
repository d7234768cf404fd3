"""Times tile shapes of the walk over the keys on the GPU here, beside torch's SDPA.

The table in ``backends/triton/configs.py`` is chosen by it. ``python tests/gpu/try_configs.py [--quick] [--json FILE]``

Every configuration is checked against SDPA first. Configurations take turns, and times are medians over rounds: a card
changes its clock under load, so only ratios within one run compare.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from triton_cases import specialized

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.backend import device_kernel
from attnc.backends.triton.compiling import Compiled, compile_with
from attnc.backends.triton.configs import SHARED_MEMORY, Config
from attnc.targets import target_of_device

SHAPES = ((2, 32, 16384, 64), (2, 16, 16384, 128), (8, 16, 4096, 128), (2, 8, 16384, 256))
SPECS = {"full": "", "causal": "mask causal", "sigmoid": "mask causal normalize sigmoid_n(score)"}
FLUSH_BYTES = 256 * 2**20


def configs(width: int) -> list[Config]:
    """The space to look at."""
    return [
        Config(m, n, warps, stages)
        for m, n, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
        if m * max(n, width) <= 4096 * warps and not (m == 64 and warps == 8)
    ]


def compiled(name: str, width: int, config: Config, target: Target) -> Compiled | str:
    """The binaries, or why there are none."""
    plan = lower_program_to_plan(specialized(SPECS[name], width, width))
    try:
        made = compile_with(plan, Workload("bf16", (), False), target, config)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:120]
    (binary,) = made.binaries
    if binary.shared > SHARED_MEMORY[target.arch]:
        return f"{binary.shared} bytes of shared memory"
    if binary.report.spilled:
        return f"{binary.report.spilled} bytes spilled"
    return made


def milliseconds(call: Callable[[], object], flush: torch.Tensor) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure(
    shape: tuple[int, int, int, int], name: str, target: Target, rounds: int, pool: ProcessPoolExecutor
) -> list[dict[str, object]]:
    """One row a configuration, the fastest first, and one for SDPA."""
    batch, heads, length, width = shape
    q, k, v = (torch.randn(batch, heads, length, width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    out = torch.empty_like(q)
    flush = torch.empty(FLUSH_BYTES, device="cuda", dtype=torch.int8)
    space = configs(width)
    made = [future.result() for future in [pool.submit(compiled, name, width, config, target) for config in space]]
    calls: dict[str, Callable[[], object]] = {}
    rows: list[dict[str, object]] = []
    if name != "sigmoid":
        calls["sdpa"] = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=name == "causal")
        expected = calls["sdpa"]()
    for config, found in zip(space, made, strict=True):
        label = f"{config.block_m}x{config.block_n} {config.warps}w {config.stages}s"
        if isinstance(found, str):
            rows.append({"config": label, "why": found})
            continue
        kernel = device_kernel(found, target)
        out.fill_(float("nan"))
        kernel.run(q, k, v, [], [], [], out, None)
        if name != "sigmoid":
            torch.testing.assert_close(out, expected, rtol=3e-2, atol=1e-2)
        elif not out.isfinite().all():
            raise AssertionError(f"{label}: not every element was written")
        calls[label] = lambda kernel=kernel: kernel.run(q, k, v, [], [], [], out, None)  # type: ignore[misc]
    times: dict[str, list[float]] = {label: [] for label in calls}
    for turn in range(rounds + 1):
        for label in calls if turn % 2 else reversed(calls):
            spent = milliseconds(calls[label], flush)
            if turn:
                times[label].append(spent)
    work = 4 * batch * heads * length**2 * width / (1 if name == "full" else 2)
    for label, spent in times.items():
        median = statistics.median(spent)
        rows.append({"config": label, "ms": round(median, 3), "tflops": round(work / median / 1e9, 1)})
    return sorted(rows, key=lambda row: -float(row.get("tflops", 0)))  # type: ignore[arg-type]


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape, few rounds")
    parser.add_argument("--json", type=Path, help="where to write all rows")
    options = parser.parse_args()
    target, results = target_of_device("cuda"), {}
    pool = ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))
    for shape in SHAPES[1:2] if options.quick else SHAPES:
        for name in SPECS:
            rows = measure(shape, name, target, 2 if options.quick else 5, pool)
            title = f"{name} B{shape[0]} H{shape[1]} S{shape[2]} D{shape[3]}"
            results[title] = rows
            print(title, *(f"  {row}" for row in rows if "tflops" in row), sep="\n", flush=True)
            failed = [row for row in rows if "why" in row]
            print(f"  {len(failed)} do not fit: {failed[:3]}", flush=True)
    pool.shutdown()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
