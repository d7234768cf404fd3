"""Inputs, constants, run-time params and the extents of the space."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attnc.check.block import Block
from attnc.check.fold import checked_literal, is_static
from attnc.check.frame import Frame
from attnc.check.values import POISON, Poison, Value, Whole
from attnc.grammar import tree as t
from attnc.ir import build
from attnc.ir.build import IllTyped
from attnc.ir.nodes import Apply, Input, Kind, Literal, Node, Size
from attnc.ir.program import Parameter

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator


def input_of(ev: Evaluator, declared: t.InputDecl, home: Block, frame: Frame) -> Value:
    """An input; its dimensions are sizes, extents, constants and integer expressions of them."""
    inner = Frame("input", home.scope, frame.body, home)
    dims, wrong = [], False
    for expr in declared.dims:
        dim = ev.node(expr, inner)
        if isinstance(dim, Poison):
            wrong = True
        elif dim.kind is not Kind.INT or not _is_dimension(dim):
            hint = "dimensions are made of sizes (B H G M N D E), extents, constants and numbers"
            found = f"varies with {', '.join(sorted(dim.axes))}" if dim.axes else f"this is {dim.kind}"
            ev.error("E301", "this is not a dimension", expr.span, inner, found, hint)
            wrong = True
        elif isinstance(dim, Literal) and dim.value < 0:
            ev.error("E301", f"a dimension cannot be {dim.value}", expr.span, inner)
            wrong = True
        else:
            dims.append(dim)
    return POISON if wrong else Whole(Input(declared.name.text, Kind(declared.kind), tuple(dims)))


def _is_dimension(node: Node) -> bool:
    match node:
        case Literal() | Size():
            return True
        case Apply(args=args, axes=axes):
            return not axes and all(map(_is_dimension, args))
        case _:
            return False


def constant(ev: Evaluator, declared: t.ConstDecl, home: Block, frame: Frame) -> Value:
    """The value of a constant: what the caller gave for it, else what is written."""
    name = declared.name
    inner = Frame("const", home.scope, frame.body, home)
    written = ev.node(declared.value, inner) if declared.value is not None else None
    if isinstance(written, Poison):
        return POISON
    if written is not None and not (is_static(written) and not written.is_vector):
        assert declared.value is not None
        hint = "a constant is made of numbers, other constants, D and E; write `let` for anything else"
        return ev.error("E302", f"`{name.text}` is not constant", declared.value.span, inner, "varies", hint)
    kind = Kind(declared.kind) if declared.kind else written.kind if written is not None else None
    if ev.constants and name.text in ev.constants:
        return _given(ev, declared, kind, ev.constants[name.text], inner)
    if written is None:
        if ev.constants is None:
            return POISON
        hint = f"pass it when loading: `load(..., {name.text}=...)`, or write `const {name.text} = ...`"
        return ev.error("E303", f"the constant `{name.text}` has no value", name.span, inner, hint=hint)
    if kind is Kind.REAL and written.kind is Kind.INT:
        return ev.build(build.to_real, (written,), name.span, inner)
    if written.kind is not kind:
        assert declared.value is not None
        found = f"this is {written.kind}"
        return ev.error("E304", f"`{name.text}` is declared {kind}", declared.value.span, inner, found)
    return written


def _given(ev: Evaluator, declared: t.ConstDecl, kind: Kind | None, value: object, frame: Frame) -> Node | Poison:
    """A constant the caller gave."""
    name = declared.name
    kinds = {bool: Kind.BOOL, int: Kind.INT, float: Kind.REAL}
    found = kinds.get(type(value))
    if found is None or (kind is not None and found is not kind and not (kind is Kind.REAL and found is Kind.INT)):
        wanted = f"{kind}" if kind else "int, real or bool"
        shown = f"{value!r} ({type(value).__name__})"
        return ev.error("E304", f"the constant `{name.text}` is {wanted}, given {shown}", name.span, frame)
    assert isinstance(value, int | float)
    if not math.isfinite(value):
        return ev.error("E305", f"the constant `{name.text}` must be finite, given {value}", name.span, frame)
    try:
        return checked_literal(float(value) if kind is Kind.REAL else value)
    except IllTyped as wrong:
        return ev.error("E305", f"the constant `{name.text}`: {wrong}", name.span, frame, hint=wrong.hint)


def parameter_of(
    ev: Evaluator, declared: t.ParamDecl, home: Block, frame: Frame
) -> tuple[Parameter | None, Node | Poison]:
    """A run-time number with its default value."""
    name = declared.name
    inner = Frame("param", home.scope, frame.body, home)
    default = ev.node(declared.value, inner) if declared.value is not None else None
    if isinstance(default, Poison):
        return None, POISON
    if default is not None and not isinstance(default, Literal):
        assert declared.value is not None
        hint = "the default of a param is a number"
        return None, ev.error("E302", f"`{name.text}` is not constant", declared.value.span, inner, "varies", hint)
    kind = Kind(declared.kind) if declared.kind else default.kind if default is not None else None
    if kind is None or kind is Kind.BOOL:
        found = "bool" if kind else "nothing"
        hint = f"write `param {name.text}: real`; a truth value is a `const` or an `input`"
        return None, ev.error("E304", "a param is int or real", name.span, inner, f"found {found}", hint)
    if default is not None and default.kind is not kind and not (kind is Kind.REAL and default.kind is Kind.INT):
        assert declared.value is not None
        wrong = f"`{name.text}` is declared {kind}"
        return None, ev.error("E304", wrong, declared.value.span, inner, f"this is {default.kind}")
    value = None if default is None else float(default.value) if kind is Kind.REAL else int(default.value)
    node = build.param(name.text, kind)
    ev.place(node, name.span, inner)
    return Parameter(name.text, kind, value), node


def extent_of(ev: Evaluator, block: Block, at: int) -> Node | Poison:
    """The extent of a coordinate of the space."""
    assert block.space is not None
    _, expr = block.space.axes[at]
    frame = Frame("space", block.scope, block, block)
    extent = ev.node(expr, frame)
    if isinstance(extent, Poison):
        return POISON
    if extent.kind is not Kind.INT or not _is_dimension(extent) or extent.axes:
        hint = "an extent is a name that the call gives, a constant or a number"
        return ev.error("E306", "this is not an extent", expr.span, frame, f"{extent.kind}", hint)
    if isinstance(extent, Literal) and extent.value < 1:
        return ev.error("E306", f"an extent cannot be {extent.value}", expr.span, frame)
    return extent
