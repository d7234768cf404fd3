"""The log-sum-exp of a row, where its weight is a softmax: the logarithm of the denominator, shift put back."""

from __future__ import annotations

from typing import TypeAlias

from attnc.ir.build import apply
from attnc.ir.nodes import Apply, Kind, Node, Reduce
from attnc.ir.traverse import contains, postorder

_Part: TypeAlias = tuple[int, Node]
"""A sign and what is added with it."""


def log_denominator(weight: Node) -> Node | None:
    """The row expression ``c + log(Z)`` if ``weight`` has exactly one softmax denominator ``Z``.

    Such a ``Z`` is ``rowsum(exp(x - c))``, or that plus terms ``exp(t - c)`` that are the same for the whole row (a
    sink, which is then counted in), where ``c`` is whatever is added up in the exponent that depends on reductions
    over the keys. So a shift by a row statistic does not change the result. ``Z`` is found as a divisor, or under a
    logarithm (as in ``exp(x - (c + log(Z)))``).
    """
    found: dict[Node, tuple[_Part, ...]] = {}
    for node in postorder(weight):
        match node:
            case Apply(op="div", args=(_, total)) | Apply(op="log", args=(total,)):
                shifts = _shifts(total)
                if len(shifts) == 1:
                    found[total] = shifts.pop()
            case _:
                pass
    if len(found) != 1:
        return None
    ((denominator, shift),) = found.items()
    lse = apply("log", denominator)
    for sign, part in reversed(shift):
        lse = apply("add", part, lse) if sign > 0 else apply("sub", lse, part)
    return lse


def _shifts(total: Node) -> set[tuple[_Part, ...]]:
    """The shifts of the terms of a softmax denominator; empty if ``total`` is none."""
    if "j" in total.axes or total.is_vector:
        return set()
    terms = _parts(total)
    sums = [term for _, term in terms if isinstance(term, Reduce) and term.over == "j" and term.op == "sum"]
    exponentials = [term.x if isinstance(term, Reduce) and term in sums else term for _, term in terms]
    if len(sums) != 1 or any(sign < 0 for sign, _ in terms):
        return set()
    shifts = [_shift(node.args[0]) for node in exponentials if isinstance(node, Apply) and node.op == "exp"]
    return set(shifts) if len(shifts) == len(terms) else set()


def _shift(exponent: Node) -> tuple[_Part, ...]:
    return tuple(
        (-sign, part) for sign, part in _parts(exponent) if "j" not in part.axes and contains(part, _is_reduction)
    )


def _is_reduction(node: Node) -> bool:
    return isinstance(node, Reduce) and node.over == "j"


def _parts(x: Node) -> list[_Part]:
    """What is added (1) and subtracted (-1) in ``x``."""
    parts: list[_Part] = []
    stack: list[_Part] = [(1, x)]
    while stack:
        sign, node = stack.pop()
        match node:
            case Apply(kind=Kind.REAL, op="add", args=(a, b)):
                stack += [(sign, b), (sign, a)]
            case Apply(kind=Kind.REAL, op="sub", args=(a, b)):
                stack += [(-sign, b), (sign, a)]
            case Apply(kind=Kind.REAL, op="neg", args=(a,)):
                stack.append((-sign, a))
            case _:
                parts.append((sign, node))
    return parts
