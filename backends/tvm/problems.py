"""What the CPU backend cannot run, found before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

from attnc.analyse.gradient.backward import Backward, Walk, expressions_of
from attnc.backends.protocol import Unsupported
from attnc.ir.nodes import BranchOutput, Cumsum, Dot, Node, Reduce, Solve
from attnc.ir.traverse import postorder
from attnc.plan import Plan, TokenMap

PAIR = {"i", "j"}


def problems_of(plan: Plan) -> list[Unsupported]:
    """Every node of ``plan`` that has no code here."""
    return without_code(plan, "CPUs")


def without_code(plan: Plan, machines: str) -> list[Unsupported]:
    """Every node of ``plan`` that no printer of expressions knows."""
    roots: list[Node] = [plan.mask, plan.output, *(token.expression for token in plan.tokens)]
    for step in plan.passes:
        roots += [statistic.term for statistic in step.statistics]
        roots += [part for accumulator in step.accumulators for part in (accumulator.term, accumulator.value)]
    found = _unknown(roots, machines)
    if plan.program.listed is not None:
        found.append(Unsupported(f"lists of keys have no kernels for {machines}", plan.output))
    return found


def backward_problems_of(backward: Backward) -> list[Unsupported]:
    """Every node of ``backward`` that has no code here."""
    plan = backward.plan
    roots = [plan.mask, *(root for step in backward.steps for root in expressions_of(step))]
    found = _unknown(roots, "CPUs")
    if plan.program.listed is not None:
        found.append(Unsupported("lists of keys have no CPU kernels", plan.output))
    terms = [plan.mask]
    for step in backward.steps:
        if not isinstance(step, TokenMap):
            terms += expressions_of(step)
        for one in step.sums if isinstance(step, Walk) else ():
            if one.value is not None and one.value.axes >= PAIR:
                found.append(Unsupported("sums of vectors that vary by pair are not supported on CPUs", one.value))
    for node in postorder(*terms):
        by_pair = isinstance(node, Reduce) and node.axes >= PAIR
        if by_pair or (isinstance(node, Dot) and (node.a.axes >= PAIR or node.b.axes >= PAIR)):
            found.append(Unsupported("no gradient is compiled for vectors that vary by pair on CPUs", node))
    return found


def _unknown(roots: Sequence[Node], machines: str) -> list[Unsupported]:
    found: list[Unsupported] = []
    for node in postorder(*roots):
        match node:
            case Cumsum():
                found.append(Unsupported(f"`cumsum` is not supported on {machines}", node))
            case Solve():
                found.append(Unsupported(f"`solve` is not supported on {machines}", node))
            case BranchOutput():
                found.append(Unsupported(f"branches are not supported on {machines}", node))
    return found
