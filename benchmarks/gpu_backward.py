"""Backwards on an NVIDIA GPU: kernels of this project in several configurations, cuDNN, flash and FlexAttention.

``python benchmarks/gpu_backward.py --case causal --shape 2x16x16x16384x128 --rounds 9``. Kernels are compiled
beforehand in parallel and checked against the reference's gradients at a small size; then all contenders take turns,
and each row is printed and written as soon as it is known, one JSON object a line. Shapes are BxHxGxNxD.

``fused`` and ``pair`` are what is chosen without and with ``torch.use_deterministic_algorithms``, ``portable`` the
portable kernels. Configurations of the kernels for Hopper are ``fused:`` or ``pair:`` and flags with ``-`` between:
``fused:hide``, ``pair:eager``, ``fused:``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from backward_kernels import (
    EVERY,
    Problem,
    Subject,
    checked,
    compiled,
    compiled_forward,
    error_of,
    faults,
    named,
    ready,
    ready_forward,
)
from cases import Shape, flops
from gpu import contenders, measure
from gpu import gradients as gradients_of
from record import RESULTS, environment

from attnc.backends.protocol import Target
from attnc.backends.triton.compiling_backward import CompiledBackward, Configs
from attnc.backends.triton.configs import backward_candidates
from attnc.backends.triton.hopper.backward_configs import WalkConfig
from attnc.targets import target_of_device

SHAPES = ("2x16x16x16384x128", "8x16x16x4096x128", "16x16x16x2048x128", "2x32x32x16384x64", "2x32x8x8192x128")
VARIANTS = ("fused", "pair", "portable")
PEERS = ("cudnn", "flash", "flex")
WIDEST_NARROW = 64


def walk_configs(variant: str, D: int, target: Target) -> Configs | str:
    """The configurations that a variant stands for."""
    if variant in ("fused", "pair"):
        return variant
    if variant == "portable":
        return {over: next(backward_candidates(target, "bf16", D, over)) for over in ("keys", "rows")}
    kind, _, given = variant.partition(":")
    flags = dict.fromkeys(filter(None, given.split("-")), True)
    narrow = D <= WIDEST_NARROW
    rows = WalkConfig(128 if narrow else 64, 128, 4, 2, **flags, fused=kind == "fused")
    if kind == "fused":
        return {"keys": WalkConfig(128, 128, 4, 2), "rows": rows}
    return {"keys": WalkConfig(128, 128, 4, 4 if narrow else 2, **flags), "rows": rows}


def main() -> None:
    """Compile, check, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=sorted(EVERY), help="may be given more than once")
    parser.add_argument("--shape", action="append", help="BxHxGxNxD, may be given more than once")
    parser.add_argument("--variant", action="append", help="fused, pair, portable, fused:hide ...")
    parser.add_argument("--inputs", action="store_true", help="gradients of the real inputs of a spec too")
    parser.add_argument("--compile-only", action="store_true", help="for sm_90, on any machine; nothing is measured")
    parser.add_argument("--no-peers", action="store_true", help="leave out cuDNN, flash and FlexAttention")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="that compile at once")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu-backward-rows.jsonl")
    given = parser.parse_args()
    begun = time.monotonic()
    target = Target("cuda", "sm_90") if given.compile_only else target_of_device("cuda")
    shapes = [Shape(*map(int, text.split("x"))) for text in given.shape or SHAPES]
    subjects = [Subject(name, D, given.inputs) for name in given.case or ("full", "causal")
                for D in sorted({shape.D for shape in shapes})]  # fmt: skip
    variants = given.variant or list(VARIANTS)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool, given.out.open("a") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        if not given.compile_only:
            write({"environment": environment(torch.device("cuda")), "rounds": given.rounds})
        forwards = {subject: pool.submit(compiled_forward, subject, target) for subject in subjects}
        backwards: dict[tuple[Subject, str], Future[CompiledBackward | str]] = {
            (subject, variant): pool.submit(compiled, subject, target, walk_configs(variant, subject.D, target))
            for subject in subjects
            for variant in variants
        }
        if given.compile_only:
            for (subject, variant), future in backwards.items():
                made = future.result()
                said = made if isinstance(made, str) else f"{named(made.configs)} {faults(made)}"
                print(f"{subject.case} {subject.D} {variant}: {said}", flush=True)
            return
        for subject in subjects:
            forward = ready_forward(forwards[subject].result(), target)
            kernels = {}
            for variant in variants:
                made = backwards[subject, variant].result()
                if isinstance(made, str):
                    print(f"{subject.case} {subject.D} {variant}: {made}", flush=True)
                    write({"case": subject.case, "D": subject.D, "variant": variant, "why": made})
                    continue
                kernel = ready(made, target)
                try:
                    error = checked(subject, forward, kernel)
                except AssertionError as wrong:
                    print(f"WRONG {subject.case} {subject.D} {variant}: {wrong}", flush=True)
                    write({"case": subject.case, "D": subject.D, "variant": variant, "wrong": str(wrong)})
                    continue
                kernels[variant] = kernel
                what = named(made.configs)
                print(f"{subject.case} {subject.D} {variant}: {what}; error {error:.1e}; {faults(made)}", flush=True)
                write({"case": subject.case, "D": subject.D, "variant": variant, "config": what, "error": error})
            for shape in (shape for shape in shapes if shape.D == subject.D):
                if time.monotonic() - begun > given.seconds:
                    print("out of time", flush=True)
                    return
                problem = Problem(subject, shape, forward)
                pulls: dict[str, Callable[[], Any]] = {name: problem.pull(kernel) for name, kernel in kernels.items()}
                if not given.no_peers:
                    pulls |= peers(problem)
                write(row := compare(problem, pulls, given.rounds))
                rates = ", ".join(f"{name} {rate:.0f}" for name, rate in row["tflops"].items())
                print(f"{subject.case} {given_shape(shape)}: {rates} TFLOP/s; {row['errors']}", flush=True)
                del problem, pulls
                torch.cuda.empty_cache()


def given_shape(shape: Shape) -> str:
    return "x".join(str(getattr(shape, x)) for x in "BHGND")


def peers(problem: Problem) -> dict[str, Callable[[], Any]]:
    """The backwards of the peers that can say a case, after forwards that are done here."""
    leaves = [x.detach().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    found: dict[str, Callable[[], Any]] = {}
    torch.compiler.reset()
    q, k, v = leaves
    for name, call in contenders(problem.case, problem.shape, q, k, v, problem.inputs).items():
        if callable(call):
            pull = gradients_of(call, leaves)
            try:
                pull()
            except Exception as error:  # a peer that cannot is a result
                print(f"{name}: {str(error).strip().splitlines()[0][:120]}", flush=True)
                continue
            found[name] = pull
    return found


def compare(problem: Problem, pulls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """One row: every contender beside the first, then times in turns."""
    names = sorted({part.name for part in problem.backward.contributions})
    order = [names.index(name) for name in ("q", "k", "v")]
    errors: dict[str, float] = {}
    first: list[torch.Tensor] = []
    for name, pull in pulls.items():
        found = list(pull())
        found = found if name in PEERS else [found[at] for at in order]
        if first:
            errors[name] = round(error_of(found, first), 5)
        else:
            first = found
    milliseconds = measure(pulls, rounds)
    work = 2.5 * flops(problem.case, problem.shape, problem.inputs)
    medians = {name: statistics.median(times) for name, times in milliseconds.items()}
    return {
        "case": problem.case.name,
        "shape": asdict(problem.shape),
        "tflops": {name: work / median / 1e9 for name, median in medians.items()},
        "milliseconds": milliseconds,
        "errors": errors,
    }


if __name__ == "__main__":
    main()
