"""The functions the language itself knows; all others are written in ``std.attn``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from attnc.check import route_functions as routing
from attnc.check.binding import bind
from attnc.check.fold import is_static
from attnc.check.frame import ALLOWED, Frame
from attnc.check.values import POISON, Matrix, Poison, Running, Value, Whole
from attnc.grammar import tree as t
from attnc.ir import build
from attnc.ir.build import IllTyped
from attnc.ir.nodes import Kind, Literal, Node, Size

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator

Intrinsic: TypeAlias = "Callable[[Evaluator, t.Call, Frame], Value]"


def operands(
    ev: Evaluator, call: t.Call, frame: Frame, parameters: str, required: int
) -> tuple[list[Node | Poison | None], list[t.Argument | None]] | None:
    """The arguments as nodes, in the order of ``parameters``; ``None`` for one left out."""
    names = parameters.split()
    given = bind(ev, call, names, required, frame)
    if given is None:
        return None
    arguments = [given.get(name) for name in names]
    return [None if argument is None else ev.node(argument.value, frame) for argument in arguments], arguments


def _operation(name: str, parameters: str, ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """An operation of the table, given as many operands as it takes."""
    found = operands(ev, call, frame, parameters, len(parameters.split()))
    if found is None:
        return POISON
    return ev.build(build.apply, (name, *found[0]), call.span, frame, [a.span for a in call.arguments])


def _extremum(name: str, ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """``min`` or ``max`` of two or more; of one, in the rank of a route, over a block."""
    if frame.clause == "rank" and len(call.arguments) == 1:
        return routing.pool(name, ev, call, frame)
    if len(call.arguments) < 2 or any(argument.name for argument in call.arguments):
        hint = f"write `{name}(a, b)`; over the keys of a row, `rowmax(x)`; over a vector, `max_d(a)`"
        return ev.error("E107", f"`{name}` takes two or more numbers", call.span, frame, hint=hint)
    first, *rest = [(ev.node(argument.value, frame), argument.span) for argument in call.arguments]
    result, span = first
    for node, at in rest:
        result = ev.build(build.apply, (name, result, node), call.span, frame, [span, at])
    return result


def _dot(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """``dot(a, b)``, or with per-channel decay ``sum_d a[d] b[d] exp(G[i, d] - G[j, d])`` (GLA)."""
    given = bind(ev, call, ["a", "b", "decay"], 2, frame)
    if given is None:
        return POISON
    a, b = (ev.node(given[name].value, frame) for name in "ab")
    spans = [given[name].span for name in "ab"]
    if "decay" in given:
        decay = ev.value(given["decay"].value, frame)
        if not isinstance(decay, Running | Poison) or (isinstance(decay, Running) and not decay.x.is_vector):
            hint = "write `let G = cumsum(logdecay[b, h, j, :])` and `dot(q, k, decay=G)`"
            return ev.error("E208", "a decay is a running sum of vectors", given["decay"].span, frame, hint=hint)
        if isinstance(decay, Poison):
            return POISON
        ends = [ev.build(build.cumsum, (decay.x, build.index(at)), call.span, frame) for at in "ij"]
        fell = ev.build(build.apply, ("sub", *ends), call.span, frame)
        factor = ev.build(build.apply, ("exp", fell), call.span, frame)
        b = ev.build(build.apply, ("mul", b, factor), call.span, frame, [spans[1], given["decay"].span])
    return ev.build(build.dot, (a, b), call.span, frame, spans)


def _reduce_width(op: str, ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    found = operands(ev, call, frame, "a", 1)
    if found is None:
        return POISON
    return ev.build(build.reduce_width, (op, found[0][0]), call.span, frame)


def _width(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    found = operands(ev, call, frame, "a", 1)
    if found is None or isinstance(found[0][0], Poison):
        return POISON
    (a,) = found[0]
    assert isinstance(a, Node)
    if a.width is None:
        return ev.error("E201", "`width` takes a vector over d, found a scalar", call.arguments[0].span, frame)
    return a.width


def _rope(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    found = operands(ev, call, frame, "a position base width", 2)
    if found is None or any(isinstance(x, Poison) for x in found[0]):
        return POISON
    (x, position, base, width), arguments = found
    assert isinstance(x, Node)
    if width is None:
        width = x.width
    elif not (isinstance(width, Node) and width.kind is Kind.INT and is_static(width)):
        assert arguments[3] is not None
        hint = "it is made of numbers, constants, D and E"
        return ev.error("E208", "the width of `rope` is a constant integer", arguments[3].span, frame, hint=hint)
    spans = [argument.span for argument in arguments if argument is not None]
    return ev.build(_checked_rope, (x, position, base or build.literal(10000.0), width), call.span, frame, spans)


def _checked_rope(x: Node, position: Node, base: Node, rotated: Node) -> Node:
    if position.is_vector or base.is_vector:
        blamed = 1 if position.is_vector else 2
        raise IllTyped("`rope` takes a number as position and base, found a vector", operand=blamed)
    if isinstance(rotated, Literal) and isinstance(x.width, Literal) and not 0 < rotated.value <= x.width.value:
        raise IllTyped(f"`rope` cannot rotate {rotated.value} elements of a vector of {x.width.value}")
    return build.rope(x, position, base, rotated)


def _matmul(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    given = bind(ev, call, ["a", "w"], 2, frame)
    if given is None:
        return POISON
    a, w = ev.node(given["a"].value, frame), ev.value(given["w"].value, frame)
    if isinstance(w, Poison):
        return POISON
    if not isinstance(w, Matrix):
        hint = "read it with two open axes, as in `w[h, :, :]`"
        return ev.error("E208", "`matmul` takes a matrix", given["w"].span, frame, hint=hint)
    return ev.build(build.matvec, (a, w.read), call.span, frame, [given["a"].span])


def _reduce_keys(op: str, ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """Over the visible keys of the row; in the rank of a route, over the candidates."""
    found = operands(ev, call, frame, "x", 1)
    if frame.clause not in ALLOWED["reduction"]:
        hint = "reductions over the keys belong into `normalize` or `output`"
        message = f"`{call.function.text}` has no keys to reduce over in `{frame.clause}`"
        return ev.error("E401", message, call.span, frame, hint=hint)
    if found is None:
        return POISON
    over = "J" if frame.clause == "rank" else "j"
    return ev.build(_checked_reduce, (op, over, found[0][0]), call.span, frame, [a.span for a in call.arguments])


def _checked_reduce(op: str, over: str, x: Node) -> Node:
    if x.kind is Kind.BOOL:
        raise IllTyped("expected a number, found a truth value", "write `1 if ... else 0`", 0)
    return build.reduce_keys(op, x) if over == "j" else build.reduce_candidates(op, x)


def _cumsum(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    given = bind(ev, call, ["x"], 1, frame)
    if given is None:
        return POISON
    value = ev.value(given["x"].value, frame)
    x = _along_keys(ev, value, call, frame) if isinstance(value, Whole) else ev.as_node(value, given["x"].value, frame)
    if isinstance(x, Poison):
        return POISON
    if "i" in x.axes:
        hint = "name the running position `j`: `cumsum(x[b, h, j])`"
        return ev.error("E208", "`cumsum` runs over `j`", call.arguments[0].span, frame, "depends on `i`", hint)
    if x.kind is Kind.BOOL:
        hint = "write `1 if ... else 0`"
        return ev.error("E201", "expected a number, found a truth value", call.arguments[0].span, frame, hint=hint)
    return Running(x)


def _along_keys(ev: Evaluator, whole: Whole, call: t.Call, frame: Frame) -> Node | Poison:
    """An input given by its name alone, read at the key: ``x[b, h, j]``, ``x[b, h, j, :]`` and the like."""
    usual = {"B": "b", "H": "h", "G": "g", "N": "j", "D": None, "E": None}
    dims = [dim.name if isinstance(dim, Size) else "" for dim in whole.input.dims]
    vectors = sum(dims.count(width) for width in "DE")
    if "N" not in dims or not usual.keys() >= set(dims) or vectors > 1:
        return ev.as_node(whole, call.arguments[0].value, frame)
    indices = tuple(None if usual[dim] is None else build.index(str(usual[dim])) for dim in dims)
    return ev.build(build.read, (whole.input, indices), call.span, frame)


INTRINSICS: Mapping[str, Intrinsic] = MappingProxyType(
    {
        **{
            name: functools.partial(_operation, name, "x")
            for name in "exp log sqrt rsqrt tanh sigmoid erf sin cos abs sign floor real detach".split()
        },
        "min": functools.partial(_extremum, "min"),
        "max": functools.partial(_extremum, "max"),
        "dot": _dot,
        "sum_d": functools.partial(_reduce_width, "sum"),
        "max_d": functools.partial(_reduce_width, "max"),
        "width": _width,
        "rope": _rope,
        "matmul": _matmul,
        "rowsum": functools.partial(_reduce_keys, "sum"),
        "rowmax": functools.partial(_reduce_keys, "max"),
        "cumsum": _cumsum,
        "solve": routing.solve,
        "merge": routing.merge,
        "mean": functools.partial(routing.pool, "mean"),
        "sum": routing.total,
        "groupsum": functools.partial(routing.heads, "g"),
        "headsum": functools.partial(routing.heads, "h"),
        "pool": routing.window,
    }
)
