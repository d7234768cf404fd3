"""TVM's kernels on a GPU beside Triton's and cuDNN's: full and causal attention in bf16, forward.

The kernels were made by ``tests/gpu/prepare_tvm_bundles.py``; TVM is not needed here. Every result is checked first,
and each row is printed and written to ``results/tvm-cuda.json`` as soon as it is known. ``--configs`` times the tiles
that were prepared beside the default ones.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case, Shape, check, flops, sdpa_call, tensors
from gpu import GPU, PEERS, pinned, prepare, timed
from record import write
from rich.console import Console
from torch import Tensor

import attnc
from attnc.backends.protocol import Kernel
from attnc.backends.tvm import TvmBackend

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("ATTNC_TVM_BUNDLES") or ROOT / "build" / "tvm-bundles")


def kernels(name: str, D: int, configs: bool) -> dict[str, Kernel]:
    """The prepared kernels of a case, by what the results call them."""
    found = {}
    for entry in json.loads((FOLDER / "index.json").read_text())["entries"]:
        fits = (entry["kind"], entry["name"], entry["widths"]) == ("bench", name, [D, D])
        if fits and "folder" in entry and (configs or not entry["config"]):
            where = FOLDER / entry["folder"]
            label = " ".join(("tvm", *(["x".join(map(str, entry["config"]))] if entry["config"] else [])))
            found[label] = TvmBackend().load(where, json.loads((where / "manifest.json").read_text()))
    return found


def caller(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        out = torch.empty_like(q)
        kernel.run(q, k, v, [], [], [], out, None)
        return out

    return call


def compare(case: Case, shape: Shape, rounds: int, configs: bool) -> dict[str, Any]:
    """One row of the results: checked first, then timed in turns."""
    q, k, v = tensors(shape, torch.bfloat16, GPU)
    op = attnc.loads(case.spec)
    calls: dict[str, Callable[[], Tensor]] = {"attnc": lambda: op(q, k, v)}
    missing = {}
    for name, kernel in kernels(case.name, shape.D, configs).items():
        calls[name] = caller(kernel, q, k, v)
    if (sdpa := sdpa_call(case, shape, q, k, v)) is not None:
        calls |= {name: pinned(sdpa, backend) for name, backend in PEERS.items()}
    errors = {}
    for name, call in list(calls.items()):
        try:
            errors[name] = check(case, op, call(), q, k, v, {})
        except (RuntimeError, AssertionError) as error:  # what cannot take part is a result too
            missing[name] = str(error).strip().splitlines()[0][:200]
            del calls[name]
    return {
        "case": case.name,
        "direction": "forward",
        "dtype": "bfloat16",
        "shape": {name: getattr(shape, name) for name in ("B", "H", "G", "N", "D")},
        "error": errors,
        "missing": missing,
    } | timed(calls, rounds, flops(case, shape, {}))


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--configs", action="store_true", help="other tiles too")
    parser.add_argument("--name", default="tvm-cuda", help="of the file in results/")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "no GPU here\n")
    if not (FOLDER / "index.json").exists():
        parser.exit(1, f"no kernels in {FOLDER}: run tests/gpu/prepare_tvm_bundles.py where TVM and nvcc are\n")
    console = Console(width=160)
    chosen = [case for case in CASES if case.name in ("full", "causal")]
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        small = [(case.name, Shape(1, 2, 2, 256, D), False) for case in chosen for D in (64, 128)]
        for job in [pool.submit(prepare, *one) for one in small]:
            job.result()
    rows: list[dict[str, Any]] = []
    for B, N in ((8, 4096), (2, 16384)):
        for D in (64, 128):
            for case in chosen:
                rows.append(compare(case, Shape(B, 2048 // D, 2048 // D, N, D), given.rounds, given.configs))
                rates = {name: f"{rate:.0f}" for name, rate in rows[-1]["tflops"].items()}
                console.print(case.name, f"N={N} D={D}", rates, rows[-1]["missing"] or "")
                write(given.name, GPU, {"rounds": given.rounds, "cold_l2": True}, rows)


if __name__ == "__main__":
    main()
