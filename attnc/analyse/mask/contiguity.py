"""Whether the ranges ``[f(w), g(w)]`` of neighbouring ``w`` run into each other, so that their union has no holes."""

from __future__ import annotations

from itertools import product
from math import inf

from attnc.analyse.mask.arithmetic import linear
from attnc.analyse.mask.linear import Linear, atom
from attnc.ir.nodes import Apply, Index, Literal, Node

MOST_BOUNDS = 8


def leaves_gaps(lower: tuple[Linear, ...], upper: tuple[Linear, ...], w: str, tolerated: int) -> bool:
    """Whether the union over consecutive ``w`` may have a hole of ``tolerated`` positions or more.

    From ``w`` to ``w + 1`` the hole is ``f(w + 1) - g(w) - 1``, at most ``max(f - g)`` plus the step of either.
    """

    def hole(f: Linear, g: Linear) -> float:
        cases = product(_bounds(f, "min"), _bounds(g, "max"))
        return min(_greatest(a - b, w) + min(_step(a, w), _step(b, w)) for a, b in cases)

    return any(hole(f, g) > tolerated for f in lower for g in upper)


def _bounds(x: Linear, op: str) -> list[Linear]:
    """``x`` and what bounds it (from above where ``op`` is ``min``): the arguments of its minima."""
    found = [x]
    for bound in found:
        for term, c in bound.terms:
            if isinstance(term, Apply) and term.op == (op if c > 0 else _OPPOSITE[op]) and len(found) < MOST_BOUNDS:
                found += [bound - atom(term).scaled(c) + linear(arg).scaled(c) for arg in term.args]
    return found


_OPPOSITE = {"min": "max", "max": "min"}


def _greatest(x: Linear, w: str, cases: int = 6) -> float:
    """An upper bound of ``x`` over all ``w``.

    What is the same for all ``w`` is taken to be at most 0, because where it is more the ranges are empty.
    """
    moving = x.varying(frozenset(w))
    for term, c in moving.terms if cases else ():
        if not isinstance(term, Apply):
            continue
        rest = x - atom(term).scaled(c)
        match term:
            case Apply(op="min" | "max", args=args):
                found = [_greatest(rest + linear(arg).scaled(c), w, cases - 1) for arg in args]
                return max(found) if (term.op == "max") == (c > 0) else min(found)
            case Apply(op="where", args=(_, yes, no)):
                return max(_greatest(rest + linear(arg).scaled(c), w, cases - 1) for arg in (yes, no))
            case Apply(op="floordiv", args=(inner, Literal(value=by))) if by > 0 and c % int(by) == 0:
                k = c // int(by)
                return _greatest(rest + linear(inner).scaled(k) + (0 if k > 0 else -k * (int(by) - 1)), w, cases - 1)
            case Apply(op="mod", args=(_, Literal(value=by))) if by > 0:
                return _greatest(rest + (c * (int(by) - 1) if c > 0 else 0), w, cases - 1)
    if moving.terms:
        return inf
    return min(x.constant, 0) if x.terms else x.constant


def _step(x: Linear, w: str) -> float:
    """The most that ``x`` changes from one ``w`` to the next."""
    return sum(abs(c) * _step_of(term, w) for term, c in x.terms if w in term.axes)


def _step_of(node: Node, w: str) -> float:
    match node:
        case Index():
            return 1
        case Apply(op="min" | "max" | "abs", args=args):
            return max(_step(linear(arg), w) for arg in args)
        case Apply(op="floordiv", args=(inner, Literal(value=by))) if by > 0:
            step = _step(linear(inner), w)
            return step if step == inf else -(-step // int(by))
    return inf
