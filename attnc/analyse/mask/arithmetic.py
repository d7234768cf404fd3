"""Arithmetic on sums that simplifies as it goes, and what is known of signs.

Everything is exact over the integers; ``//`` and ``%`` floor.
"""

from __future__ import annotations

from functools import lru_cache

from attnc.analyse.mask.linear import Linear, M, N, atom, constant, to_node
from attnc.analyse.visibility import I_HI, I_LO, J_HI, J_LO
from attnc.ir.build import apply, index, size
from attnc.ir.nodes import Apply, Index, Kind, Literal, Node, Size

_ORDERED = ((I_LO, I_HI, 0), (J_LO, J_HI, 0), (I_LO, size("N"), 1), (J_LO, size("N"), 1))
"""``(a, b, d)`` with ``b - a >= d`` for every tile that has a pair."""


def nonnegative(x: Linear, cases: int = 3) -> bool:
    """Whether ``x >= 0`` whatever the sizes, parameters, data and tile (``False``: not known).

    ``cases``: how many minima and maxima are replaced by their arguments.
    """
    total, least_rest = dict(x.terms), x.constant
    for less, more, least_difference in _ORDERED:
        shared = min(total.get(more, 0), -total.get(less, 0))
        if shared > 0:
            total[more] -= shared
            total[less] += shared
            least_rest += shared * least_difference
    if least_rest >= 0 and all(c == 0 or (c > 0 and _node_nonnegative(t)) for t, c in total.items()):
        return True
    return any(nonnegative(less, cases - 1) for less in _lower_bounds(x)) if cases else False


def _lower_bounds(x: Linear) -> list[Linear]:
    """Expressions that ``x`` is at least as great as, simpler by the first term that has such."""
    for term, c in x.terms:
        rest = x - atom(term).scaled(c)
        match term:
            case Apply(op="min" | "max", args=args) if (term.op == "max") == (c > 0):
                return [rest + linear(arg).scaled(c) for arg in args]
            case Apply(op="floordiv", args=(a, Literal(value=by))) if by > 0 and c % int(by) == 0:
                k, spare = c // int(by), constant(int(by) - 1)
            case Apply(op="mul", args=(Apply(op="floordiv", args=(a, by)), times)) if by is times and positive(
                linear(by)
            ):
                k, spare = c, linear(by) - 1
            case _:
                continue
        # `a // by * by` lies in [a - spare, a]
        return [rest + linear(a).scaled(k) - (spare.scaled(k) if k > 0 else constant(0))]
    return []


def positive(x: Linear) -> bool:
    """Whether ``x >= 1`` wherever a tile exists: sizes are, for without them there is no pair."""
    if nonnegative(x - 1):
        return True
    return x.constant >= 0 and bool(x.terms) and all(c > 0 and _node_positive(t) for t, c in x.terms)


@lru_cache(maxsize=4096)
def _node_nonnegative(node: Node) -> bool:
    match node:
        case Literal():
            return node.value >= 0
        case Size():
            return node not in (I_LO, I_HI)
        case Index():
            return node.name != "i"
        case Apply():
            known = [_node_nonnegative(arg) for arg in node.args]
            match node.op:
                case "add" | "mul" | "min" | "bitor" | "bitxor" | "shl":
                    return all(known)
                case "max" | "bitand":
                    return any(known)
                case "shr":
                    return known[0]
                case "floordiv":
                    return known[0] and _node_positive(node.args[1])
                case "mod":
                    return _node_positive(node.args[1])
                case "where":
                    return all(known[1:])
                case "abs":
                    return True
    return False


def _node_positive(node: Node) -> bool:
    match node:
        case Literal():
            return node.value >= 1
        case Size():
            return node not in (I_LO, I_HI, J_LO, J_HI)
        case Apply(op="mul"):
            return all(map(_node_positive, node.args))
        case Apply(op="max"):
            return any(map(_node_positive, node.args))
    return False


@lru_cache(maxsize=4096)
def linear(node: Node) -> Linear:
    """The simplified sum that an ``int`` scalar is."""
    match node:
        case Literal():
            return constant(int(node.value))
        case Index(name="row"):
            return atom(index("i")) - N + M
        case Apply(op="floor", args=(Apply(op="real", args=(x,)),)):
            return linear(x)
        case Apply() if all(arg.kind is Kind.INT for arg in node.args):
            args = [linear(arg) for arg in node.args]
            match node.op:
                case "add":
                    return args[0] + args[1]
                case "sub":
                    return args[0] - args[1]
                case "neg":
                    return -args[0]
                case "mul":
                    return product(*args)
                case "floordiv":
                    return quotient(*args)
                case "mod":
                    return remainder(*args)
                case "min":
                    return least(*args)
                case "max":
                    return greatest(*args)
                case "abs":
                    return absolute(args[0])
                case "shl" | "shr" if _is_shift(args[1]):
                    power = constant(1 << args[1].constant)
                    return product(args[0], power) if node.op == "shl" else quotient(args[0], power)
                case "bitand":
                    return _bits_in_both(*args)
                case _:
                    return _applied(node.op, *args)
        case Apply(op="where", args=(condition, yes, no)):
            return choose(condition, linear(yes), linear(no))
    return atom(node)


def _is_shift(x: Linear) -> bool:
    return not x.terms and 0 <= x.constant < 32


def _applied(op: str, *args: Linear) -> Linear:
    return atom(apply(op, *map(to_node, args)))


def _bits_in_both(x: Linear, y: Linear) -> Linear:
    """``x & y``; a mask of one bit or of all low bits is a remainder, for negative numbers too."""
    for value, word in ((x, y), (y, x)):
        if not word.terms and word.constant >= 0:
            if word.constant & (word.constant + 1) == 0:
                return remainder(value, constant(word.constant + 1))
            if word.constant & (word.constant - 1) == 0:
                return remainder(quotient(value, word), constant(2)).scaled(word.constant)
    return _applied("bitand", x, y)


def product(x: Linear, y: Linear) -> Linear:
    for a, b in ((x, y), (y, x)):
        if not a.terms:
            return b.scaled(a.constant)
    return _applied("mul", x, y)


def _split(x: Linear, divisor: Linear) -> tuple[Linear, Linear]:
    """``(whole, rest)`` with ``x == whole * divisor + rest``, as much in ``whole`` as can be seen."""
    if not divisor.terms:
        c = divisor.constant
        whole = Linear(tuple((t, k // c) for t, k in x.terms if k % c == 0), x.constant // c)
        return whole, Linear(tuple((t, k) for t, k in x.terms if k % c), x.constant % c)
    unit = to_node(divisor)
    whole, rest = constant(0), constant(x.constant)
    for term, k in x.terms:
        match term:
            case _ if term is unit:
                whole += k
            case Apply(op="mul", args=(other, factor)) if factor is unit:
                whole += linear(other).scaled(k)
            case Apply(op="mul", args=(factor, other)) if factor is unit:
                whole += linear(other).scaled(k)
            case _:
                rest += Linear(((term, k),), 0)
    return whole, rest


def quotient(x: Linear, divisor: Linear) -> Linear:
    """``x // divisor``, for a divisor that is never 0 where it matters."""
    if not divisor.terms and divisor.constant == 0:
        return _applied("floordiv", x, divisor)
    whole, rest = _split(x, divisor)
    if not rest.terms and (rest.constant == 0 or not divisor.terms):
        return whole + (rest.constant // divisor.constant if rest.constant else 0)
    match rest:
        case Linear(terms=((Apply(op="floordiv", args=(inner, Literal(value=by))), 1),), constant=0) if by > 0:
            return whole + quotient(linear(inner), divisor.scaled(int(by)))
        case Linear(terms=((Apply(op="mod", args=(_, Literal(value=by))), 1),), constant=0):
            if not divisor.terms and 0 < by <= divisor.constant:
                return whole
    return whole + _applied("floordiv", rest, divisor)


def remainder(x: Linear, divisor: Linear) -> Linear:
    """``x % divisor``, with the sign of the divisor."""
    if not divisor.terms and divisor.constant == 0:
        return _applied("mod", x, divisor)
    _, rest = _split(x, divisor)
    if not rest.terms and (rest.constant == 0 or not divisor.terms):
        return constant(rest.constant % divisor.constant if rest.constant else 0)
    match rest:
        case Linear(terms=((Apply(op="mod", args=(inner, by)), 1),), constant=0):
            modulus = linear(by)
            if modulus == divisor:
                return rest
            if not modulus.terms and not divisor.terms and 0 < modulus.constant <= divisor.constant:
                return rest
            if not modulus.terms and not divisor.terms and modulus.constant % divisor.constant == 0:
                return remainder(linear(inner), divisor)
    return _applied("mod", rest, divisor)


def least(x: Linear, y: Linear) -> Linear:
    return x if nonnegative(y - x) else y if nonnegative(x - y) else _applied("min", x, y)


def greatest(x: Linear, y: Linear) -> Linear:
    return x if nonnegative(x - y) else y if nonnegative(y - x) else _applied("max", x, y)


def absolute(x: Linear) -> Linear:
    return x if nonnegative(x) else -x if nonnegative(-x) else _applied("abs", x)


def choose(condition: Node, yes: Linear, no: Linear) -> Linear:
    """``yes if condition else no``."""
    if yes == no:
        return yes
    if isinstance(condition, Literal):
        return yes if condition.value else no
    return atom(apply("where", condition, to_node(yes), to_node(no)))
