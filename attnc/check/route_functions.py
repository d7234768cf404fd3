"""Functions of routes, branches and triangular systems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from attnc.check.binding import bind
from attnc.check.defaults import default_clause, std_scope
from attnc.check.frame import Frame
from attnc.check.report import did_you_mean
from attnc.check.values import POISON, Poison, Value, Whole
from attnc.grammar import tree as t
from attnc.ir import build
from attnc.ir.nodes import Bound, Kind, Literal, Node

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator


def solve(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """``solve(pair, x)``: ``L^-1 x``; inside ``pair``, ``k[i]`` and ``k[j]`` are the keys of the two tokens."""
    given = bind(ev, call, ["pair", "x"], 2, frame)
    if given is None:
        return POISON
    if frame.clause not in ("value", "let"):
        message = f"`solve` is not known in `{frame.clause}`"
        return ev.error("E401", message, call.span, frame, hint="it makes values: write `value solve(..., v)`")
    pair = ev.node(given["pair"].value, replace(frame, clause="solve"))
    x = ev.node(given["x"].value, frame)
    if isinstance(pair, Node) and pair.is_vector:
        hint = "reduce it, as in `dot(k[i], k[j])`"
        return ev.error("E209", "an entry of `solve` is a number for each pair", given["pair"].span, frame, hint=hint)
    if isinstance(x, Node) and "i" in x.axes:
        hint = "it is solved once, not for every query"
        return ev.error("E211", "the right side of `solve` cannot depend on `i`", given["x"].span, frame, hint=hint)
    spans = [given["pair"].span, given["x"].span]
    return ev.build(lambda a, b: build.solve(build.to_real(a), b), (pair, x), call.span, frame, spans)


def merge(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """``merge(a, b, ...)``: one softmax over the keys of several branches."""
    from attnc.check.clauses import body_of

    branches = frame.body.branches
    if frame.clause not in ("output", "let") or not branches:
        hint = "it combines branches: `output merge(near, far)`"
        return ev.error("E404", "there is nothing to merge here", call.span, frame, hint=hint)
    names = []
    for argument in call.arguments:
        name = argument.value
        if not isinstance(name, t.Name) or name.text not in branches or argument.name is not None:
            shown = name.text if isinstance(name, t.Name) else ""
            hint_ = did_you_mean(shown, branches) or f"its branches are {', '.join(branches)}"
            return ev.error("E404", "`merge` takes names of branches", argument.span, frame, hint=hint_)
        if name.text in names:
            return ev.error("E404", f"`{name.text}` is merged twice", argument.span, frame)
        names.append(name.text)
        if frame.home is not None:
            ev.used.add((frame.body, name.text))
    if len(names) < 2:
        return ev.error("E404", "`merge` takes two or more branches", call.span, frame)
    for name_text, argument in zip(names, call.arguments, strict=True):
        branch = branches[name_text]
        body = body_of(ev, branch)
        if body is None:
            return POISON
        softmax = ev.node(default_clause("normalize").value, Frame("normalize", std_scope(), branch, None))
        summed = build.reduce_keys("sum", build.apply("mul", body.weight, body.value))
        if body.weight is not softmax or body.output is not summed:
            hint = "one softmax over several key sets needs `softmax(score)` and no `output` in each"
            return ev.error("E404", f"the branch `{name_text}` cannot be merged", argument.span, frame, hint=hint)
    return ev.build(build.branch_output, (tuple(names), build.size("E")), call.span, frame)


def pool(op: str, ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """``mean``, ``max`` or ``min`` over the tokens of a block, in the rank of a route."""
    given = bind(ev, call, ["x"], 1, frame)
    if given is None:
        return POISON
    x = ev.node(given["x"].value, frame)
    if frame.clause == "let" or isinstance(x, Poison):
        return POISON
    if frame.clause != "rank":
        hint = "over the keys of a row, write `rowmean(x)`; over a vector, `sum_d(a) / width(a)`"
        return ev.error("E401", f"`{op}` is over a block, in the `rank` of a route", call.span, frame, hint=hint)
    over = next((axis for axis in "jwi" if axis in x.axes), None)
    if over is None:
        message = f"`{op}` has no tokens to reduce over"
        return ev.error("E603", message, given["x"].span, frame, "depends on no token of a block")
    return ev.build(build.pool, (op, over, x), call.span, frame, [given["x"].span])


def heads(over: str, ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """``groupsum(x)`` and ``headsum(x)``: over the query heads of a key head, or all heads, in the rank of a route."""
    given = bind(ev, call, ["x"], 1, frame)
    if given is None:
        return POISON
    x = ev.node(given["x"].value, frame)
    if frame.clause == "let":
        return POISON
    if frame.clause != "rank":
        hint = "heads attend by themselves; they choose together in the `rank` of a route"
        return ev.error("E401", f"`{call.function.text}` sums over heads", call.span, frame, hint=hint)
    return ev.build(build.pool, ("sum", over, x), call.span, frame, [given["x"].span])


def window(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """``pool(x, window, stride)``: the means over windows of keys, in ``key``, ``value`` or the rank of a route."""
    given = bind(ev, call, ["x", "window", "stride"], 2, frame)
    if given is None:
        return POISON
    x = ev.node(given["x"].value, frame)
    sizes = [ev.node(given[name].value, frame) for name in ("window", "stride") if name in given]
    if isinstance(x, Poison) or any(isinstance(size, Poison) for size in sizes) or frame.clause == "let":
        return POISON
    for size, name in zip(sizes, ("window", "stride"), strict=False):
        if not isinstance(size, Literal) or size.kind is not Kind.INT or size.value < 1:
            return ev.error("E605", f"`{name}` is a constant integer, at least 1", given[name].span, frame)
    if frame.clause not in ("key", "value", "rank"):
        hint = "write `key pool(k, window=32, stride=16)` and `value pool(v, window=32, stride=16)`"
        return ev.error("E401", f"`pool` is not known in `{frame.clause}`", call.span, frame, hint=hint)
    if "j" not in x.axes or x.axes & {"i", "J", "w"}:
        return ev.error("E605", "`pool` takes something of each key", given["x"].span, frame)
    axis = "w" if frame.clause == "rank" else "j"
    return ev.build(build.window, (axis, x, sizes[0], sizes[-1]), call.span, frame, [given["x"].span])


def total(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """``sum(n, expr)``: over the axis of the inputs that ``n`` indexes in ``expr``."""
    if len(call.arguments) == 1:
        return pool("sum", ev, call, frame)
    given = bind(ev, call, ["index", "expr"], 2, frame)
    if given is None:
        return POISON
    name, expr = given["index"].value, given["expr"].value
    if not isinstance(name, t.Name):
        hint = "write `sum(n, w[b, row, n])`"
        return ev.error("E603", "`sum` takes the name of an index first", name.span, frame, hint=hint)
    if frame.clause not in ("rank", "let"):
        hint = "over the keys of a row, write `rowsum(x)`; over a vector, `sum_d(a)`"
        return ev.error("E401", "`sum` runs over an extra axis, in the `rank` of a route", call.span, frame, hint=hint)
    extents = {extent for extent in _extents(ev, name.text, expr, frame) if extent is not None}
    if len(extents) != 1:
        message = f"how far `{name.text}` runs is not known" if not extents else f"`{name.text}` indexes unequal axes"
        hint = f"index an input with it, as in `w[b, row, {name.text}]`"
        return ev.error("E603", message, name.span, frame, hint=hint)
    level = sum(isinstance(value, Bound) for value in frame.values.values())
    index = build.bound(level, extents.pop())
    body = ev.node(expr, replace(frame, values={**frame.values, name.text: index}))
    return ev.build(build.total, (body, index), call.span, frame, [expr.span])


def _extents(ev: Evaluator, name: str, expr: t.Expr | t.Range, frame: Frame) -> Iterator[Node | None]:
    """The dimensions of inputs that are indexed by ``name`` itself."""
    match expr:
        case t.Subscript(base=base, items=items):
            for place, item in enumerate(items):
                if isinstance(item, t.Name) and item.text == name:
                    source = ev.value(base, frame)
                    if isinstance(source, Whole) and place < len(source.input.dims):
                        yield source.input.dims[place]
                yield from _extents(ev, name, item, frame)
        case t.Unary(x=x):
            yield from _extents(ev, name, x, frame)
        case t.Binary(a=a, b=b):
            yield from _extents(ev, name, a, frame)
            yield from _extents(ev, name, b, frame)
        case t.Compare(first=first, rest=rest):
            for x in (first, *(x for _, x in rest)):
                yield from _extents(ev, name, x, frame)
        case t.Conditional(then=then, condition=condition, otherwise=otherwise):
            for x in (then, condition, otherwise):
                yield from _extents(ev, name, x, frame)
        case t.Call(arguments=arguments):
            for argument in arguments:
                yield from _extents(ev, name, argument.value, frame)
        case t.Range(lo=lo, hi=hi):
            for bound in (lo, hi):
                if bound is not None:
                    yield from _extents(ev, name, bound, frame)
        case t.Name() | t.Number() | t.Truth() | t.Coordinate():
            return
