"""Computing what is known when a spec is loaded: arithmetic of literals, and identities that are exact.

Unlike :func:`attnc.ir.fold.fold`, a result that kernels cannot hold is an error here, where its place is known.
"""

from __future__ import annotations

from attnc.ir import build
from attnc.ir.build import IllTyped
from attnc.ir.fold import VALUE
from attnc.ir.nodes import Apply, Kind, Literal, Node, Size

MAX_INT = 2**31 - 1
MAX_REAL = 3.4028234663852886e38


def checked_literal(value: int | float | bool) -> Literal:
    """A literal that kernels can hold: an int of 32 bits, a real within float32."""
    if isinstance(value, float) and not abs(value) <= MAX_REAL:
        raise IllTyped(
            f"{value:g} is not a finite float32 number",
            "numbers are finite; a pair that must not take part is excluded by `mask`",
        )
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INT:
        raise IllTyped(
            "this integer does not fit 32 bits, in which kernels compute",
            "a real is written with a `.`; a word of bits is split in two",
        )
    return build.literal(value)


def fold(node: Node) -> Node:
    """The same value, computed as far as it is known.

    Raises:
        IllTyped: it has no finite value.
    """
    if not isinstance(node, Apply):
        return node
    if node.op == "where":
        condition, then, otherwise = node.args
        if isinstance(condition, Literal) and then.width is otherwise.width:
            return then if condition.value else otherwise
        return node
    values = [arg.value for arg in node.args if isinstance(arg, Literal)]
    return _identity(node) if len(values) < len(node.args) else _compute(node, values)


def _compute(node: Apply, values: list[int | float | bool]) -> Node:
    if node.op in ("shl", "shr") and not 0 <= values[1] < 32:
        raise IllTyped(f"cannot shift by {values[1]} bits")
    try:
        value = VALUE[node.op](*values)
    except ZeroDivisionError:
        raise IllTyped("division by zero") from None
    except (ValueError, ArithmeticError):
        shown = ", ".join(f"{value:g}" for value in values)
        raise IllTyped(f"`{node.op}` of {shown} is not a finite number") from None
    return checked_literal(float(value) if node.kind is Kind.REAL else value)


def _identity(node: Apply) -> Node:
    """``x // 1``, ``true and x`` and the like; nothing that rounds."""
    if len(node.args) != 2:
        return node
    a, b = node.args
    known_a = a.value if isinstance(a, Literal) else None
    known_b = b.value if isinstance(b, Literal) else None
    match node.op:
        case "and" | "or":
            absorbing = node.op == "or"
            for known, other in ((known_a, b), (known_b, a)):
                if known is not None and not other.is_vector:
                    return build.literal(absorbing) if known is absorbing else other
        case "floordiv" | "mod" | "div" if known_b == 0:
            raise IllTyped("division by zero", operand=1)
        case "floordiv" if known_b == 1:
            return a
        case "mod" if known_b == 1 and node.kind is Kind.INT and not a.is_vector:
            return build.literal(0)
        case "add" if node.kind is Kind.INT and known_a == 0:
            return b
        case "add" | "sub" if node.kind is Kind.INT and known_b is not None:
            return _offset(a, int(known_b) if node.op == "add" else -int(known_b), node)
        case "mul" if node.kind is Kind.INT:
            return b if known_a == 1 else a if known_b == 1 else node
    return node


def _offset(x: Node, by: int, node: Node) -> Node:
    """The integer ``x + by``, written ``node``, with the offset that ``x`` has already."""
    if isinstance(x, Apply) and x.op in ("add", "sub") and isinstance(x.args[1], Literal):
        inner = int(x.args[1].value)
        by += inner if x.op == "add" else -inner
        x = x.args[0]
    elif by:
        return node
    if not by:
        return x
    return build.apply("add" if by > 0 else "sub", x, checked_literal(abs(by)))


def is_static(node: Node) -> bool:
    """Whether a node is made of literals and the head widths ``D`` and ``E`` alone."""
    match node:
        case Literal():
            return True
        case Size(name=name):
            return name in ("D", "E")
        case Apply(args=args):
            return all(map(is_static, args))
        case _:
            return False
