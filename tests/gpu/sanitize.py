"""A small case of each kernel, for compute-sanitizer, which finds accesses out of bounds and races.

    python tests/gpu/sanitize.py                                         # once, so that everything is compiled
    compute-sanitizer --tool memcheck --error-exitcode 9 python tests/gpu/sanitize.py
    compute-sanitizer --tool racecheck --error-exitcode 9 python tests/gpu/sanitize.py

Prints the families of kernels that ran. Results are compared with the reference too.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton_backward_cases
import triton_cases

from attnc.backends.protocol import BackwardKernel, Kernel
from attnc.targets import target_of_device

FORWARD = (
    ("causal", "f32", {}),
    ("causal", "bf16", {"D": 64, "E": 64, "M": 77, "N": 141}),
    ("documents", "bf16", {"D": 64, "E": 64, "M": 141, "N": 141}),
    ("window", "f16", {"D": 64, "E": 128, "M": 141, "N": 141}),
    ("affine", "bf16", {"D": 64, "E": 64, "M": 77, "N": 77}),
    ("two passes", "f32", {}),
    ("normalised and rotated", "f32", {}),
    ("projections", "f32", {}),
    ("no key", "bf16", {"D": 64, "E": 64}),
    ("causal", "bf16", {"H": 8, "G": 2, "M": 1, "N": 701, "D": 64, "E": 64}),
    ("chosen blocks", "bf16", {"D": 64, "E": 64, "M": 141, "N": 141}),
)
BACKWARD = (
    ("causal", "f32", {}),
    ("causal", "bf16", {"D": 64, "E": 64, "M": 141, "N": 141}),
    ("documents", "bf16", {"D": 64, "E": 64, "M": 141, "N": 141}),
    ("alibi", "bf16", {"D": 64, "E": 64, "M": 141, "N": 141}),
    ("buckets", "f32", {}),
    ("grouped table", "f32", {}),
)


def families(kernel: Kernel | BackwardKernel) -> set[str]:
    parts = [getattr(kernel, name) for name in ("many", "few") if hasattr(kernel, name)] or [kernel]
    return {launch.family for part in parts for launch in part.recipe.launches}  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forward-only", action="store_true")
    target = target_of_device("cuda")
    ran: set[str] = set()
    workload_of = triton_backward_cases.workload_of
    for name, dtype, sizes in FORWARD:
        data = triton_cases.make(triton_cases.find(name).at(**sizes), dtype, 1, "cuda")
        data.compare(target)
        ran |= families(data.kernel(target))
        print(f"forward, {name}, {dtype}: right", flush=True)
    for name, dtype, sizes in () if parser.parse_args().forward_only else BACKWARD:
        data = triton_backward_cases.make(triton_backward_cases.find(name).at(**sizes), dtype, 1, "cuda")
        backward = triton_backward_cases.backward_of(data)
        ordered = workload_of(data)
        for unordered in (False, True) if dtype == "bf16" else (False,):
            workload = replace(ordered, unordered=unordered)
            triton_backward_cases.workload_of = lambda _, it=workload: it  # type: ignore[misc]
            triton_backward_cases.compare(data, target)
            ran |= families(triton_backward_cases.backward_kernel(backward, workload, target))
            print(f"backward, {name}, {dtype}, {'any' if unordered else 'one'} order: right", flush=True)
    torch.cuda.synchronize()
    print("kernels:", ", ".join(sorted(ran)))


if __name__ == "__main__":
    main()
