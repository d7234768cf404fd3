"""Which family of kernels runs a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from attnc.analyse.mask import analyse_mask
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.compiling import Compiled, compile_plan, compile_with, precision, rows_chosen
from attnc.backends.triton.configs import SHARED_MEMORY
from attnc.backends.triton.hopper.configs import HopperConfig, hopper_candidates
from attnc.backends.triton.hopper.walk import Unfit
from attnc.backends.triton.lower import lower_plan_to_recipe
from attnc.backends.triton.regroup import regroupable
from attnc.backends.triton.report import fault_in
from attnc.backends.triton.rewrites import widths
from attnc.backends.triton.support import find_problems
from attnc.backends.triton.vectors import split
from attnc.ir.nodes import Kind
from attnc.plan import Plan

_KERNELS = "kernels with TMA and warp specialisation"


def choose(plan: Plan, workload: Workload, target: Target) -> Compiled:
    """The kernels of a plan: those for Hopper where they can be had, else the portable ones, with the reason why.

    Raises:
        CompileError: nothing fits.
    """
    if regroupable(plan) is not None:
        return replace(compile_plan(plan, workload, target), note="portable kernels for queries sorted by lists")
    found = why_narrow(plan) or compile_for_hopper(plan, workload, target)
    if isinstance(found, Compiled):
        return found
    made = compile_plan(plan, workload, target)
    return replace(made, note=f"portable kernels: {found}")


def compile_for_hopper(plan: Plan, workload: Workload, target: Target) -> Compiled | str:
    """Kernels for Hopper of the first configuration that is sound, or why there are none."""
    if reason := why_not_hopper(plan, workload, target):
        return reason
    reasons: list[str] = []
    for config in hopper_configs(plan):
        made = compile_with(plan, workload, target, config)
        if (fault := fault_of(made)) is None:
            return replace(made, note=f"{_KERNELS}, {config.block_m} rows by {config.block_n} keys")
        reasons.append(f"{config.block_m} rows by {config.block_n} keys: {fault}")
    return "; ".join((f"{_KERNELS} do not fit", *reasons))


def why_narrow(plan: Plan) -> str | None:
    """Why tiles of fewer rows are better: wider ones visit what any of several choosers chose, masked."""
    if rows := rows_chosen(plan):
        return f"{rows} rows choose together, {_KERNELS} hold more"
    return None


def why_not_hopper(plan: Plan, workload: Workload, target: Target) -> str | None:
    """Why there are no kernels for Hopper, as far as can be told without compiling; ``None`` if there may be."""
    if target.arch != "sm_90":
        return f"{_KERNELS} are for sm_90, not for {target}"
    if workload.dtype not in ("bf16", "f16"):
        return f"{_KERNELS} take bf16 and f16, not {workload.dtype}"
    if (config := next(hopper_configs(plan), None)) is None:
        return f"{_KERNELS} do not fit vectors as wide as these"
    try:
        lower_plan_to_recipe(plan, workload, config, precision(target))
    except Unfit as reason:
        return f"{_KERNELS} do not take {reason}"
    return None


def outlook(plan: Plan) -> str:
    """Which kernels a plan gets on Hopper in 16 bits, as far as can be told without compiling."""
    types = {Kind.REAL: "f32", Kind.INT: "i32", Kind.BOOL: "bool"}
    workload = Workload("bf16", tuple(types[declared.kind] for declared in plan.program.inputs), plan.lse is not None)
    target = Target("cuda", "sm_90")
    if problems := list(find_problems(plan, workload, target)):
        return f"no kernels: {problems[0].message}"
    if reason := why_narrow(plan) or why_not_hopper(plan, workload, target):
        return f"portable kernels: {reason}"
    return f"{_KERNELS}, unless the compiler's report is against them"


def hopper_configs(plan: Plan) -> Iterator[HopperConfig]:
    """What to try in order."""
    return hopper_candidates(*lanes_of(plan), by_lists=not analyse_mask(plan.mask).by_ranges)


def fault_of(made: Compiled) -> str | None:
    """What the compilers' reports hold against kernels for Hopper."""
    for launch, binary in zip(made.lowered.recipe.launches, made.binaries, strict=True):
        if fault := fault_in(binary.report, launch.family, SHARED_MEMORY["sm_90"]):
            return f"{launch.name} {fault}"
    return None


def lanes_of(plan: Plan) -> tuple[int, int, int]:
    """Lanes of a key, of a value and of all accumulators of a row, padded."""
    keys, values = (sum(padded for _, _, padded in split(width)) for width in widths(plan.program))
    return keys, values, values * max(len(step.accumulators) for step in plan.passes)
