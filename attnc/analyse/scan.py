"""Whether a plan is of the form that can run in linear time, with a state carried over the keys."""

from __future__ import annotations

from attnc.analyse.algebra import addends
from attnc.ir.nodes import Apply, Dot, Node, State
from attnc.ir.printer import expression
from attnc.ir.traverse import postorder
from attnc.plan import Plan


def why_pairwise(plan: Plan) -> str:
    """Why the plan looks at every visible pair, as a sentence.

    The form is a term that is a function of the query times a function of the key times one dot product. No kernels
    with a carried state exist yet, so plans of the form are computed pairwise as well.
    """
    if len(plan.passes) > 1:
        return "linear time: a weight that needs several passes over the keys is computed pair by pair"
    (step,) = plan.passes
    for part in step.parts:
        if not is_separable(part.term):
            names: dict[Node, str] = {node: node.name for node in postorder(part.term) if isinstance(node, State)}
            term = expression(part.term, names, depth=6)
            return (
                f"linear time: `{term}` is not a function of the query times one of the key times a dot product, "
                "so it is computed pair by pair"
            )
    return (
        "linear time: under a full or causal mask a carried state could sum these terms, but there are no kernels for "
        "that yet, so they are computed pair by pair"
    )


def is_separable(term: Node) -> bool:
    """Whether ``term`` is a function of the query times one of the key times at most one dot product."""
    return _dot_products(term) in (0, 1)


def _dot_products(term: Node) -> int | None:
    """How many dot products of query and key are factors of ``term``; ``None`` if it is no such product."""
    if not {"i", "j"} <= term.axes:
        return 0
    match term:
        case Dot():
            return 1
        case Apply(op="neg", args=(a,)):
            return _dot_products(a)
        case Apply(op="mul", args=(a, b)):
            first, second = _dot_products(a), _dot_products(b)
            return None if first is None or second is None else first + second
        case Apply(op="div", args=(a, b)) if _dot_products(b) == 0:
            return _dot_products(a)
        case Apply(op="exp", args=(x,)) if all(not {"i", "j"} <= part.axes for _, part in addends(x)):
            return 0
        case _:
            return None
