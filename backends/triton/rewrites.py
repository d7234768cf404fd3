"""Small rewrites of plans, and questions about them, on the way to kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from attnc.ir import build
from attnc.ir.nodes import Apply, Dot, Index, Input, Kind, Literal, Node, State, Token
from attnc.ir.program import Program
from attnc.ir.traverse import contains, postorder, rewrite
from attnc.plan import Pass

_TOKENS = {"q": ("b", "h", "row"), "k": ("b", "g", "j"), "v": ("b", "g", "j")}
_TOKEN_DIMS = {"q": ("B", "H", "M"), "k": ("B", "G", "N"), "v": ("B", "G", "N")}


def widths(program: Program) -> tuple[int, int]:
    """The head widths of a specialised program."""
    assert program.widths is not None, "programs are specialised before they are planned"
    return program.widths


def writes_output(output: Node, last: Pass) -> bool:
    """Whether the last pass can write the output: its accumulators have the lanes the output has."""
    found = {one.value.width for one in last.accumulators}
    return found == {output.width} and is_lanewise(output)


def is_lanewise(output: Node) -> bool:
    """Whether each lane of the output needs that lane of the accumulators and nothing else of them."""
    for node in postorder(output):
        if not isinstance(node, Apply | State) and any(
            child.is_vector and contains(child, _is_accumulator) for child in node.children
        ):
            return False
    return True


def _is_accumulator(node: Node) -> bool:
    return isinstance(node, State) and node.is_vector


def vanishes(output: Node) -> bool:
    """Whether an output is surely 0 where its accumulators are, whatever its statistics are."""

    def is_plain(node: Node) -> bool:
        return not contains(node, lambda inner: isinstance(inner, State))

    match output:
        case State():
            return output.is_vector
        case Apply(op="neg", args=(x,)):
            return vanishes(x)
        case Apply(op="add" | "sub", args=(a, b)):
            return vanishes(a) and vanishes(b)
        case Apply(op="mul", args=(a, b)):
            return (vanishes(a) and is_plain(b)) or (vanishes(b) and is_plain(a))
        case Apply(op="div", args=(a, b)):
            return vanishes(a) and is_plain(b)
    return False


def dots_of(roots: Sequence[Node]) -> tuple[Dot, ...]:
    """Dot products of a query and a key vector, in order of first use."""
    return tuple(node for node in postorder(*roots) if isinstance(node, Dot))


def token_read(node: Node) -> Node:
    """``node`` with raw token vectors as reads of the tensors q, k and v: for kernels that look at one token."""

    def as_read(node: Node) -> Node:
        match node:
            case Token(name=name, width=width) if width is not None:
                dims = (*(build.size(dim) for dim in _TOKEN_DIMS[name]), width)
                return build.read(Input(name, Kind.REAL, dims), (*map(build.index, _TOKENS[name]), None))
            case _:
                return node

    return rewrite(node, as_read)


def rewritten(step: Pass, finals: Mapping[Node, Node]) -> Pass:
    """A pass that reads what earlier passes left."""
    return _mapped(step, lambda node: finals.get(node, node))


def with_outer_factors(step: Pass) -> Pass:
    """A pass in which constant factors stand outside: ``dot * c + x * y``, with ``x`` the same for all keys, as
    ``(dot + x / c * y) * c``, and ``abs(x * c)`` as ``abs(x) * c``. The outer factor of what is exponentiated goes into
    the exponential for nothing. Distances of positions are taken between reals.
    """
    return _mapped(step, _outwards)


def _mapped(step: Pass, fn: Callable[[Node], Node]) -> Pass:
    """A pass with ``fn`` applied to every node of its terms, children first."""
    memo: dict[Node, Node] = {}

    def mapped(node: Node) -> Node:
        return rewrite(node, fn, memo)

    return Pass(
        tuple(replace(one, term=mapped(one.term), shift=one.shift and mapped(one.shift)) for one in step.statistics),
        tuple(replace(one, term=mapped(one.term), shift=one.shift and mapped(one.shift)) for one in step.accumulators),
    )


def factored(x: Node) -> tuple[float, Node]:
    """``x`` as a number times the rest."""
    factor = 1.0
    while True:
        match x:
            case (
                Apply(op="mul", args=(Literal(value=value), rest)) | Apply(op="mul", args=(rest, Literal(value=value)))
            ) if x.kind is Kind.REAL:
                factor, x = factor * value, rest
            case Apply(op="div", args=(rest, Literal(value=value))) if value != 0:
                factor, x = factor / value, rest
            case Apply(op="neg", args=(rest,)) if x.kind is Kind.REAL:
                factor, x = -factor, rest
            case _:
                return factor, x


def _times(factor: float, x: Node) -> Node:
    if factor in (1.0, -1.0):
        return x if factor == 1.0 else build.apply("neg", x)
    return build.apply("mul", x, build.literal(factor))


def _outwards(node: Node) -> Node:
    """``node`` with a factor of its operands taken outside, where that is the same number."""
    match node:
        case Apply(op="mul" | "div") if node.kind is Kind.REAL and not node.is_vector:
            factor, rest = factored(node)
            match rest:
                case Apply(op="mul", args=(a, b)):
                    (c, x), (d, y) = factored(a), factored(b)
                    factor, rest = factor * c * d, build.apply("mul", x, y)
                case Apply(op="div", args=(a, b)):
                    c, x = factored(a)
                    factor, rest = factor * c, build.apply("div", x, b)
            return _times(factor, rest)
        case Apply(op="abs", args=(a,)) if a.kind is Kind.REAL:
            factor, x = factored(a)
            return _times(abs(factor), build.apply("abs", x))
        case Apply(op="sign", args=(a,)) if a.kind is Kind.REAL:
            factor, x = factored(a)
            return _times(math.copysign(1.0, factor), build.apply("sign", x)) if factor else node
        case Apply(op="add" | "sub" as op, args=(Apply(op="mul", args=(Dot() as dot, Literal(value=by))), term)) if (
            by > 0
        ):
            factor, rest = factored(term)
            if not isinstance(rest, Apply) or rest.op != "mul" or all("j" in x.axes for x in rest.args):
                return node
            x, y = rest.args if "j" not in rest.args[0].axes else rest.args[::-1]
            op = op if factor > 0 else "sub" if op == "add" else "add"
            small = _times(abs(factor) / by, x)
            return build.apply("mul", build.apply(op, dot, build.apply("mul", small, y)), build.literal(by))
        case Apply(op="real", args=(Apply(op="sub", args=(Index(name="j") as j, x)),)) if "j" not in x.axes:
            return build.apply("neg", build.apply("real", build.apply("sub", x, j)))
        case Apply(op="real", args=(Apply(op="abs", args=(x,)),)):
            return build.apply("abs", build.apply("real", x))
    return node
