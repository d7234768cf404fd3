"""Small rewrites of plans, and questions about them, on the way to kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from attnc.ir import build
from attnc.ir.nodes import Apply, Dot, Input, Kind, Literal, Node, State, Token
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

    def final(node: Node) -> Node:
        return rewrite(node, lambda inner: finals.get(inner, inner))

    return Pass(
        tuple(replace(one, term=final(one.term), shift=one.shift and final(one.shift)) for one in step.statistics),
        tuple(replace(one, term=final(one.term), shift=one.shift and final(one.shift)) for one in step.accumulators),
    )


def with_common_scales(step: Pass) -> Pass:
    """A pass whose maxima have a constant factor outside: ``dot * c + x * y``, with ``x`` the same for all keys, as
    ``(dot + x / c * y) * c``. The outer factor goes into the exponentials for nothing.
    """
    scaled = {one.term: new for one in step.statistics if one.op == "max" and (new := _common_scale(one.term))}
    return rewritten(step, scaled) if scaled else step


def _common_scale(term: Node) -> Node | None:
    match term:
        case Apply(
            op="add" | "sub" as op,
            args=(Apply(op="mul", args=(Dot() as dot, Literal(value=by))), Apply(op="mul", args=(x, y))),
        ) if by > 0 and "j" not in x.axes:
            small = build.apply("mul", x, build.literal(1.0 / by))
            return build.apply("mul", build.apply(op, dot, build.apply("mul", small, y)), build.literal(by))
    return None
