"""What the CPU backend cannot run, found before anything is built."""

from __future__ import annotations

from attnc.backends.protocol import Unsupported
from attnc.ir.nodes import BranchOutput, Cumsum, Node, Solve
from attnc.ir.traverse import postorder
from attnc.plan import Plan


def problems_of(plan: Plan) -> list[Unsupported]:
    """Every node of ``plan`` that has no code here."""
    roots: list[Node] = [plan.mask, plan.output, *(token.expression for token in plan.tokens)]
    for step in plan.passes:
        roots += [statistic.term for statistic in step.statistics]
        roots += [part for accumulator in step.accumulators for part in (accumulator.term, accumulator.value)]
    found: list[Unsupported] = []
    for node in postorder(*roots):
        match node:
            case Cumsum():
                found.append(Unsupported("`cumsum` is not supported on CPUs", node))
            case Solve():
                found.append(Unsupported("`solve` is not supported on CPUs", node))
            case BranchOutput():
                found.append(Unsupported("branches are not supported on CPUs", node))
    return found
