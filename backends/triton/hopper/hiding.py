"""What dot products are set to where a pair is not visible, if that alone makes its weights vanish.

Weights can always be set to 0 where they are done. If ``dot = -1e18`` makes them 0 as well, as it does in
``exp(dot * scale - m)`` and in ``sigmoid(dot)``, hiding the dot product instead leaves the exponentials and the
products that follow in one basic block, which the compiler can overlap.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from enum import Enum, auto

from attnc.ir.nodes import Apply, Dot, Literal, Node, Read
from attnc.ir.traverse import contains, postorder

FAR = 1e18
"""Large, but products with it are finite: infinities would make NaN of ``0 * inf`` in gradients."""


class Limit(Enum):
    """Where something goes as the dot products go far."""

    ZERO = auto()
    FINITE = auto()
    DOWN = auto()
    UP = auto()
    UNKNOWN = auto()


_OPPOSITE = {Limit.DOWN: Limit.UP, Limit.UP: Limit.DOWN}
_BOUNDED = frozenset({"tanh", "erf", "sin", "cos", "sign"})
_LIMITED = frozenset({Limit.ZERO, Limit.FINITE})


def hidden_dot(dots: Iterable[Dot], weights: Iterable[Node], given: Container[str]) -> float | None:
    """A value of ``dots`` at which all ``weights`` are 0; ``None`` if there is none.

    ``given`` names the inputs of the call, which may hold anything where pairs are not visible. What else does not vary
    by pair is finite: visible pairs use it too, and maps are 0 in rows that see nothing.
    """
    dots, weights = tuple(dots), tuple(weights)
    for value, limit in ((-FAR, Limit.DOWN), (FAR, Limit.UP)):
        limits = _limits(weights, dict.fromkeys(dots, limit), given)
        if dots and all(limits[weight] is Limit.ZERO for weight in weights):
            return value
    return None


def _limits(roots: Iterable[Node], known: Mapping[Node, Limit], given: Container[str]) -> dict[Node, Limit]:
    def is_unsafe(node: Node) -> bool:
        return node in known or (isinstance(node, Read) and bool(node.axes & {"i", "j"}) and node.input.name in given)

    limits: dict[Node, Limit] = dict(known)
    for node in postorder(*roots, stop=limits):
        if node in limits:
            continue
        match node:
            case Literal(value=value):
                limits[node] = Limit.FINITE if value else Limit.ZERO
            case _ if not {"i", "j"} <= node.axes and not contains(node, is_unsafe):
                limits[node] = Limit.FINITE
            case Read():
                limits[node] = Limit.UNKNOWN
            case Apply():
                limits[node] = _limit(node, [limits[arg] for arg in node.args])
            case _:
                limits[node] = Limit.FINITE
    return limits


def _limit(node: Apply, args: list[Limit]) -> Limit:
    match node.op, args:
        case ("neg", [a]):
            return _OPPOSITE.get(a, a)
        case ("mul" | "div", [a, b]) if isinstance(node.args[1], Literal) and node.args[1].value:
            return a if node.args[1].value > 0 else _OPPOSITE.get(a, a)
        case ("mul", [a, b]):
            if Limit.ZERO in args and _LIMITED.issuperset(args):
                return Limit.ZERO
            return Limit.FINITE if _LIMITED.issuperset(args) else Limit.UNKNOWN
        case ("add" | "sub", [a, b]):
            return _sum(a, b if node.op == "add" else _OPPOSITE.get(b, b))
        case ("exp", [a]):
            return Limit.ZERO if a is Limit.DOWN else Limit.UNKNOWN
        case ("sigmoid", [a]):
            return Limit.ZERO if a is Limit.DOWN else Limit.UNKNOWN if a is Limit.UNKNOWN else Limit.FINITE
        case ("max", [Limit.DOWN, a] | [a, Limit.DOWN]) | ("min", [Limit.UP, a] | [a, Limit.UP]):
            return a
        case (op, [a]) if op in _BOUNDED and a is not Limit.UNKNOWN:
            return Limit.FINITE
        case ("max" | "min" | "abs" | "real", _) if _LIMITED.issuperset(args):
            return Limit.FINITE if Limit.FINITE in args else Limit.ZERO
    return Limit.UNKNOWN


def _sum(a: Limit, b: Limit) -> Limit:
    if a is Limit.ZERO or a is b:
        return b
    if b is Limit.ZERO:
        return a
    if Limit.FINITE in (a, b) and Limit.UNKNOWN not in (a, b):
        return a if b is Limit.FINITE else b
    return Limit.UNKNOWN
