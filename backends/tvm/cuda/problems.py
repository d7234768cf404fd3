"""What TVM's kernels for GPUs cannot run, found before anything is built."""

from __future__ import annotations

from attnc.analyse.gradient.backward import Backward
from attnc.backends.protocol import Target, Unsupported, Workload
from attnc.backends.tvm.cuda.shared import MOST_SHARED
from attnc.backends.tvm.problems import without_code
from attnc.ir.nodes import Dot, MatVec, Node, Reduce, Rope
from attnc.ir.traverse import postorder
from attnc.plan import Plan

WIDEST = 256
"""Of heads: sums lie in the registers of the four threads of a row."""


def problems_of(plan: Plan, workload: Workload, target: Target) -> list[Unsupported]:
    """Everything in ``plan`` that has no code for GPUs."""
    if target.arch not in MOST_SHARED:
        known = ", ".join(MOST_SHARED)
        return [Unsupported(f"TVM's kernels for GPUs are for {known}, not for `{target}`", plan.output)]
    found = []
    if workload.dtype == "f64":
        found.append(Unsupported("GPU kernels compute in f32: float64 q, k and v run on the CPU", plan.output))
    for width in plan.program.widths or ():
        if width > WIDEST:
            found.append(Unsupported(f"heads are at most {WIDEST} wide, found {width}", plan.output))
    for step in plan.passes:
        for one in step.accumulators:
            if "i" in one.value.axes and not by_element(one.value):
                found.append(Unsupported("a value that rotates or multiplies by pair has no kernel", one.value))
    return found + without_code(plan, "GPUs")


def backward_problems_of(backward: Backward) -> list[Unsupported]:
    """Why no backward is compiled: there are no kernels for one."""
    message = "TVM compiles no backward for GPUs; Triton does"
    return [Unsupported(message, backward.plan.output, hint="leave `backend` out to train")]


def by_element(root: Node) -> bool:
    """Whether elements of a vector can be computed one by one, at places that vary."""
    scalars = {node for node in postorder(root) if not node.is_vector}
    return not any(isinstance(node, Rope | MatVec) for node in postorder(root, stop=scalars))


def is_lanewise(root: Node) -> bool:
    """Whether each element of a vector takes nothing but the same elements of others, and numbers of the row."""
    return by_element(root) and not any(isinstance(node, Dot | Reduce) for node in postorder(root))
