"""The log-sum-exp of a row, where the weight has one softmax denominator."""

from __future__ import annotations

from attnc.analyse.algebra import Sign, addends, has_statistic, is_row, sign_of, signed_sum
from attnc.ir.build import apply
from attnc.ir.nodes import Apply, Node, Reduce
from attnc.ir.traverse import postorder


def find_lse(weight: Node) -> Node | None:
    """``c + log(d)``, where ``d`` is the one denominator of ``weight`` that is a sum of ``exp(x - c)`` over the keys.

    ``d`` may have positive row terms besides (a sink), which then count as keys. ``c`` is whatever the exponent
    subtracts that depends on row statistics, so that the result is ``log(sum(exp(x)) + ...)``. ``None`` where
    there is no such denominator, or more than one.
    """
    found: dict[Node, Node] = {}
    for node in postorder(weight):
        match node:
            case Apply(op="div", args=(_, d)) | Apply(op="log", args=(d,)):
                lse = _lse_of(d)
                if lse is not None:
                    found[d] = lse
            case _:
                pass
    return next(iter(found.values())) if len(found) == 1 else None


def _lse_of(denominator: Node) -> Node | None:
    if denominator.is_vector or not is_row(denominator):
        return None
    sums = []
    for sign, part in addends(denominator):
        match part:
            case Reduce(op="sum", over="j", x=Apply(op="exp", args=(exponent,))) if sign > 0:
                sums.append(exponent)
            case _ if sign < 0 or sign_of(part, {}) is not Sign.POSITIVE:
                return None
    if len(sums) != 1:
        return None
    shift = [(-sign, part) for sign, part in addends(sums[0]) if is_row(part) and has_statistic(part)]
    return signed_sum([*shift, (1, apply("log", denominator))])
