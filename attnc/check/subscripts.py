"""Brackets: reads of inputs, parts of vectors, running sums at a position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnc.check.fold import is_static
from attnc.check.frame import Frame
from attnc.check.values import POISON, Matrix, Poison, Running, Value, Whole
from attnc.grammar import Span
from attnc.grammar import tree as t
from attnc.ir import build
from attnc.ir.nodes import Index, Input, Kind, Literal, Node, Size, Token

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator

RANGE = {"b": "B", "h": "H", "g": "G", "row": "M", "i": "N", "j": "N"}
"""The size that bounds each index."""

FITS = {"g": {"G", "H"}, "row": {"M", "N"}}
"""The sizes an index may run along, where that is not only its own: g < G <= H, row < M <= N."""

REMEDY = {
    ("i", "M"): "`i` is the position on the key axis; write `row` for the query row",
    ("j", "M"): "`j` is a key; write `row` for the query row",
    ("h", "G"): "write `g` for the key/value head",
}


def subscript(ev: Evaluator, expr: t.Subscript, frame: Frame) -> Value:
    """The value of ``base[items]``."""
    base = ev.value(expr.base, frame)
    match base:
        case Poison():
            for item in expr.items:
                if not isinstance(item, t.Range):
                    ev.node(item, frame)
            return POISON
        case Whole(input=source):
            return _read(ev, source, expr, frame)
        case Running(x=x):
            return _running(ev, x, expr, frame)
        case Matrix():
            return ev.error("E205", "this is read already", expr.span, frame, hint="give all indices in one bracket")
        case Node():
            return _part(ev, base, expr, frame)


def _read(ev: Evaluator, source: Input, expr: t.Subscript, frame: Frame) -> Value:
    indices: list[Node | Poison | None] = []
    part: t.Range | None = None
    for item in expr.items:
        if isinstance(item, t.Range):
            indices.append(None)
            part = item if item.lo or item.hi else part
        else:
            indices.append(ev.node(item, frame))
    if any(isinstance(at, Poison) for at in indices):
        return POISON
    if len(indices) != len(source.dims):
        from attnc.check.names import suggested_read

        found = f"{len(source.dims)} dimensions, found {len(indices)} indices"
        hint = f"did you mean `{suggested_read(source)}`?" if source.dims else f"write `{source.name}` alone"
        return ev.error("E206", f"`{source.name}` has {found}", expr.span, frame, hint=hint)
    good = [_in_range(ev, source, n, at, expr.items[n].span, frame) for n, at in enumerate(indices)]
    if not all(good):
        return POISON
    node = ev.build(build.read, (source, tuple(indices)), expr.span, frame)
    opened = sum(at is None for at in indices)
    if isinstance(node, Poison) or not opened:
        return node
    if opened > 1:
        if opened > 2 or part is not None:
            return ev.error("E206", "too many open axes", expr.span, frame, hint="one makes a vector, two a matrix")
        return Matrix(node)  # type: ignore[arg-type]
    return node if part is None else _slice(ev, node, part, expr.span, frame)


def _in_range(ev: Evaluator, source: Input, axis: int, at: object, span: Span, frame: Frame) -> bool:
    """Refuse reads that are outside, or along the wrong axis, whatever the sizes."""
    dim = source.dims[axis]
    if isinstance(at, Index) and isinstance(dim, Size) and dim.name in "BHGMN" and at.name in RANGE:
        fits = FITS.get(at.name, {RANGE[at.name]})
        if dim.name not in fits:
            message = f"`{at.name}` does not run along this axis of `{source.name}`"
            hint = REMEDY.get((at.name, dim.name))
            ev.error("E207", message, span, frame, f"this axis has {dim.name} entries", hint)
            return False
    if isinstance(at, Literal) and at.kind is Kind.INT:
        end = dim.value if isinstance(dim, Literal) else None
        if at.value < 0 or (end is not None and at.value >= end):
            bound = f"0 to {int(end) - 1}" if end is not None else "0 and up"
            ev.error("E207", f"this reads outside `{source.name}`", span, frame, f"entries are {bound}")
            return False
    return True


def _part(ev: Evaluator, base: Node, expr: t.Subscript, frame: Frame) -> Value:
    item = expr.items[0]
    position = item.text if isinstance(item, t.Name) and len(expr.items) == 1 else ""
    if frame.clause == "solve" and isinstance(base, Token) and base.name == "k" and position in ("i", "j"):
        return build.token("$k" if position == "i" else "k")
    if not base.is_vector:
        return ev.error("E205", "a number has no parts", expr.span, frame, hint="brackets read inputs and cut vectors")
    if len(expr.items) != 1 or not isinstance(item, t.Range):
        hint = "write `a[lo:hi]`; the element n is `sum_d(a[n:n + 1])`"
        return ev.error("E205", "a vector is cut by one range", expr.span, frame, hint=hint)
    return _slice(ev, base, item, expr.span, frame)


def _slice(ev: Evaluator, base: Node, item: t.Range, span: Span, frame: Frame) -> Node | Poison:
    assert base.width is not None
    lo = build.literal(0) if item.lo is None else ev.node(item.lo, frame)
    hi = base.width if item.hi is None else ev.node(item.hi, frame)
    for bound, expr in ((lo, item.lo), (hi, item.hi)):
        if isinstance(bound, Node) and expr is not None and not (bound.kind is Kind.INT and is_static(bound)):
            hint = "it is made of numbers, constants, D and E"
            return ev.error("E205", "the bound of a slice is a constant integer", expr.span, frame, hint=hint)
    return ev.build(_whole_or_slice, (base, lo, hi), span, frame)


def _whole_or_slice(base: Node, lo: Node, hi: Node) -> Node:
    if isinstance(lo, Literal) and lo.value == 0 and hi is base.width:
        return base
    return build.slice_(base, lo, hi)


def _running(ev: Evaluator, x: Node, expr: t.Subscript, frame: Frame) -> Value:
    items: Sequence[t.Expr | t.Range] = expr.items
    if items and isinstance(items[-1], t.Range) and x.is_vector:
        items = items[:-1]
    names = [item.text if isinstance(item, t.Name) else "?" for item in items]
    heads, position = names[:-1], names[-1:]
    if position not in (["i"], ["j"]) or heads not in ([], ["b"], ["h"], ["b", "h"]):
        hint = "write `G[b, h, i]` or `G[b, h, j]`"
        return ev.error("E205", "a running sum is read at `i` or `j`", expr.span, frame, hint=hint)
    return ev.build(build.cumsum, (x, build.index(position[0])), expr.span, frame)
