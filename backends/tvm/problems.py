"""What the CPU backend cannot run, found before anything is built."""

from __future__ import annotations

from attnc.backends.protocol import Unsupported
from attnc.ir.nodes import BranchOutput, Cumsum, Dot, Node, Solve
from attnc.ir.traverse import postorder
from attnc.plan import Plan


def problems_of(plan: Plan) -> list[Unsupported]:
    """Every node of ``plan`` that has no code here."""
    found: list[Unsupported] = []
    terms: list[Node] = [plan.mask]
    for step in plan.passes:
        terms += [statistic.term for statistic in step.statistics]
        for accumulator in step.accumulators:
            terms.append(accumulator.term)
            if "i" in accumulator.value.axes:
                found.append(
                    Unsupported("values that vary with the query are not supported on CPUs", accumulator.value)
                )
    roots = [*terms, plan.output, *(token.expression for token in plan.tokens)]
    for node in postorder(*roots, *(a.value for step in plan.passes for a in step.accumulators)):
        match node:
            case Cumsum():
                found.append(Unsupported("`cumsum` is not supported on CPUs", node))
            case Solve():
                found.append(Unsupported("`solve` is not supported on CPUs", node))
            case BranchOutput():
                found.append(Unsupported("branches are not supported on CPUs", node))
    for node in postorder(*terms):
        if isinstance(node, Dot) and {"i", "j"} <= node.axes and ("j" in node.a.axes or "i" in node.b.axes):
            found.append(Unsupported("a dot product of vectors that vary with query and key is not supported", node))
    return found
