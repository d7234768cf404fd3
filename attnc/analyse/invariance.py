"""Which running maxima no result depends on, so that a kernel may let them lag behind the true maximum.

Move a maximum ``m`` of a pass, and with it a shift ``c`` that contains it, by any amount, and let ``t`` be
``exp(c before - c after)``. Sums relative to ``c`` are then multiplied by ``t``, and ``c`` itself has ``log(t)``
taken away. A :class:`Change` says what that does to an expression; where the outputs of a plan and all that later
passes read do not change, only rounding depends on ``m``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnc.ir.nodes import Apply, Dot, Literal, MatVec, Node, Reduce, Rope, Slice, State
from attnc.ir.traverse import contains, postorder
from attnc.plan import Plan


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of an expression: times ``t ** scale``, plus ``log * log(t)``; one of the two is 0."""

    scale: float = 0.0
    log: float = 0.0


NOTHING = Change()


def free_maxima(plan: Plan) -> frozenset[str]:
    """The names of the maxima that may lag: each is in one shift only, as itself or in a ``max`` with other things."""
    return frozenset(
        one.name
        for at, step in enumerate(plan.passes)
        for one in step.statistics
        if one.op == "max" and _is_free(plan, at, one.name)
    )


def _is_free(plan: Plan, at: int, name: str) -> bool:
    def is_maximum(node: Node) -> bool:
        return isinstance(node, State) and node.name == name

    step = plan.passes[at]
    shifts = {part.shift for part in step.parts if part.shift is not None and contains(part.shift, is_maximum)}
    if len(shifts) != 1:
        return False
    (shift,) = shifts
    around = shift.args if isinstance(shift, Apply) and shift.op == "max" else (shift,)
    if not any(map(is_maximum, around)):
        return False
    moved = {part.name for part in step.parts if part.shift is shift}
    known: dict[Node, Change | None] = {shift: Change(log=-1.0)}
    for node in postorder(*plan.roots):
        if isinstance(node, State) and node is not shift:
            known[node] = None if is_maximum(node) else Change(1.0) if node.name in moved else NOTHING
    for part in step.parts:
        if _change(part.term, known) != (Change(1.0) if part.shift is shift else NOTHING):
            return False
    later = [root for after in plan.passes[at + 1 :] for root in after.roots]
    results = [plan.output, *([] if plan.lse is None else [plan.lse]), *later]
    return all(_change(root, known) == NOTHING for root in results)


def _change(root: Node, known: Mapping[Node, Change | None]) -> Change | None:
    """What becomes of ``root``, given that of some nodes below it; ``None`` where there is no saying."""
    changes = dict(known)
    for node in postorder(root, stop=known):
        if node not in changes:
            changes[node] = _of(node, [changes[child] for child in node.children])
    return changes[root]


def _of(node: Node, inner: list[Change | None]) -> Change | None:
    if all(one == NOTHING for one in inner):
        return NOTHING
    if None in inner:
        return None
    match node, inner:
        case (Apply(op="where"), [Change(0.0, 0.0), a, b]) | (Apply(op="min" | "max"), [a, b]) if a == b:
            return a
        case Apply(op="lt" | "le" | "gt" | "ge" | "eq" | "ne"), [a, b] if a == b:
            return NOTHING
        case Apply(op="add"), [Change(0.0, a), Change(0.0, b)]:
            return Change(log=a + b)
        case Apply(op="sub"), [Change(0.0, a), Change(0.0, b)]:
            return Change(log=a - b)
        case Apply(op="add" | "sub"), [a, b] if a == b:
            return a
        case Apply(op="neg"), [Change(scale, log)]:
            return Change(scale, -log)
        case ((Apply(op="mul") | Dot()), [Change(a, 0.0), Change(b, 0.0)]):
            return Change(a + b)
        case Apply(op="mul", args=(Literal(value=by), _)), [_, Change(0.0, log)]:
            return Change(log=log * by)
        case Apply(op="mul", args=(_, Literal(value=by))), [Change(0.0, log), _]:
            return Change(log=log * by)
        case Apply(op="div"), [Change(a, 0.0), Change(b, 0.0)]:
            return Change(a - b)
        case Apply(op="exp"), [Change(0.0, log)]:
            return Change(log)
        case Apply(op="log"), [Change(scale, 0.0)]:
            return Change(log=scale)
        case Apply(op="sqrt" | "rsqrt" as op), [Change(scale, 0.0)]:
            return Change(scale / (2.0 if op == "sqrt" else -2.0))
        case Apply(op="abs"), [Change(_, 0.0) as a]:
            return a
        case Apply(op="detach") | Reduce(op="max") | Slice(), [a, *_]:
            return a
        case Reduce(op="sum") | Rope() | MatVec(), [Change(_, 0.0) as a, *rest] if all(x == NOTHING for x in rest):
            return a
    return None
