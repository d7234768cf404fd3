"""Which kernels the walks of a backward get on Hopper, in words; nothing is compiled for it."""

from __future__ import annotations

from collections.abc import Iterator

from attnc.analyse.gradient.backward import Backward, Walk
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.adjoint import prepare
from attnc.backends.triton.hopper.backward_configs import fused_refusal, refusal
from attnc.backends.triton.hopper.backward_terms import cotangents
from attnc.backends.triton.lower_backward import lanes_of
from attnc.backends.triton.slots import Over
from attnc.backends.triton.support import find_backward_problems

SM90 = Target("cuda", "sm_90")
_OVERS: tuple[Over, ...] = ("keys", "rows")


def explain_walks(backward: Backward) -> Iterator[str]:
    """A line for each traversal, and one that says whether they are one kernel; for bf16."""
    workload = Workload("bf16", (), False)
    if problems := list(find_backward_problems(backward, workload, SM90)):
        yield f"none: {problems[0].message}"
        return
    prepared = prepare(backward)
    walked = [over for over in _OVERS if any(isinstance(x, Walk) and x.over == over for x in prepared.steps)]
    refusals = {over: refusal(over, prepared, workload, SM90, lanes_of(backward)) for over in walked}
    for over, reason in refusals.items():
        yield f"over the {over}: " + (f"portable kernels, as {reason}" if reason else "TMA and warp specialisation")
    if any(refusals.values()) or len(walked) < 2:
        return
    if reason := fused_refusal(prepared, cotangents(prepared.steps)):
        yield f"not in one kernel, as {reason}"
    else:
        yield "in one kernel, where sums over the keys are added up in any order; in two if they are to keep one"
