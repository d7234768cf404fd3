"""Which family of kernels runs a plan."""

from __future__ import annotations

from dataclasses import replace

from attnc.analyse.mask import analyse_mask
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.compiling import Compiled, compile_plan, compile_with
from attnc.backends.triton.configs import SHARED_MEMORY
from attnc.backends.triton.hopper.configs import hopper_candidates
from attnc.backends.triton.hopper.walk import Unfit
from attnc.backends.triton.report import fault_in
from attnc.backends.triton.rewrites import widths
from attnc.backends.triton.vectors import split
from attnc.plan import Plan


def choose(plan: Plan, workload: Workload, target: Target) -> Compiled:
    """The kernels of a plan: those for Hopper where they can be had, else the portable ones, with the reason why.

    Raises:
        CompileError: nothing fits.
    """
    found = compile_for_hopper(plan, workload, target)
    if isinstance(found, Compiled):
        return found
    made = compile_plan(plan, workload, target)
    return replace(made, note=f"portable kernels: {found}")


def compile_for_hopper(plan: Plan, workload: Workload, target: Target) -> Compiled | str:
    """Kernels for Hopper of the first configuration that is sound, or why there are none."""
    if target.arch != "sm_90":
        return f"those with TMA and warp specialisation are for sm_90, not for {target}"
    if workload.dtype not in ("bf16", "f16"):
        return f"those with TMA and warp specialisation take bf16 and f16, not {workload.dtype}"
    reasons: list[str] = []
    for config in hopper_candidates(*_lanes(plan), by_lists=not analyse_mask(plan.mask).by_ranges):
        try:
            made = compile_with(plan, workload, target, config)
        except Unfit as reason:
            return f"those with TMA and warp specialisation have none for {reason}"
        if (fault := fault_of(made)) is None:
            return replace(
                made, note=f"kernels with TMA and warp specialisation, {config.block_m} rows by {config.block_n} keys"
            )
        reasons.append(f"{config.block_m} x {config.block_n}: {fault}")
    return "; ".join(("those with TMA and warp specialisation do not fit", *reasons))


def fault_of(made: Compiled) -> str | None:
    """What the compilers' reports hold against kernels for Hopper."""
    for launch, binary in zip(made.lowered.recipe.launches, made.binaries, strict=True):
        if fault := fault_in(binary.report, launch.family, SHARED_MEMORY["sm_90"]):
            return f"{launch.name} {fault}"
    return None


def _lanes(plan: Plan) -> tuple[int, int, int]:
    keys, values = (sum(padded for _, _, padded in split(width)) for width in widths(plan.program))
    return keys, values, values * max(len(step.accumulators) for step in plan.passes)
