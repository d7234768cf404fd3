"""What a name stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

from attnc.check.block import ALWAYS_THERE, INDICES, SIZES, Block, Declared
from attnc.check.declared import constant, extent_of, input_of, parameter_of
from attnc.check.frame import ALLOWED, RAW, Frame
from attnc.check.report import did_you_mean
from attnc.check.values import POISON, Poison, Value
from attnc.grammar import tree as t
from attnc.ir import build
from attnc.ir.nodes import Input, Node, Size

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator


def value(ev: Evaluator, name: t.Name, frame: Frame) -> Value:
    """The value of a name; the nearest meaning wins: parameter, declaration, always there, function."""
    found = _value(ev, name, frame)
    if isinstance(found, Node):
        ev.places.setdefault(found, []).append(name.span)
    return found


def _value(ev: Evaluator, name: t.Name, frame: Frame) -> Value:
    text = name.text
    if text in frame.values:
        return frame.values[text]
    if frame.home is not None and text in (frame.home.outer or frame.home).refused | frame.home.refused:
        return POISON
    found = frame.home.find(text) if frame.home is not None else None
    if found is not None:
        return _declared(ev, name, *found, frame)
    if text in ALWAYS_THERE:
        return always_there(ev, name, frame)
    function = frame.scope.find(text)
    if function is not None:
        if function.required:
            parameters = ", ".join(parameter.name.text for parameter in function.declared.parameters)
            hint = f"write `{text}({parameters})`"
            return ev.error("E107", f"`{text}` is a function and needs arguments", name.span, frame, hint=hint)
        return ev.call(function, {}, name.span, frame)
    return _unknown(ev, name, frame)


def _unknown(ev: Evaluator, name: t.Name, frame: Frame) -> Poison:
    from attnc.check.intrinsics import INTRINSICS

    text = name.text
    if text in INTRINSICS:
        hint = f"write `{text}(...)`"
        return ev.error("E107", f"`{text}` is a function and needs arguments", name.span, frame, hint=hint)
    known = {*frame.values, *ALWAYS_THERE, *frame.scope.names()} | set(frame.home.names() if frame.home else ())
    hint_: str | None
    match text:
        case "inf" | "infinity" | "nan" | "Infinity":
            hint_ = "numbers are finite; a pair that must not take part is excluded by `mask`"
        case "True" | "False":
            hint_ = f"write `{text.lower()}`"
        case "d":
            hint_ = "the axis d has no name: vectors are used whole, or in part as `q[0:64]`"
        case _:
            hint_ = did_you_mean(text, known)
    return ev.error("E101", f"the name `{text}` is unknown", name.span, frame, "unknown", hint_)


def is_value(text: str, frame: Frame) -> bool:
    """Whether a name stands for something that is not a function."""
    return text in frame.values or text in ALWAYS_THERE or bool(frame.home and frame.home.find(text))


def _declared(ev: Evaluator, name: t.Name, declared: Declared, home: Block, frame: Frame) -> Value:
    ev.used.add((home, name.text))
    match declared:
        case t.InputDecl() | t.ConstDecl():
            return declared_value(ev, declared, home, frame, name)
        case t.ParamDecl():
            return parameter_of(ev, declared, home, frame)[1]
        case t.Name():
            return build.size(name.text)
        case t.Let(value=expr):
            inner = Frame(frame.clause, home.scope, frame.body, home)
            key = ("let", id(declared), frame.clause, frame.body)
            return _once(ev, name, key, frame, lambda: ev.value(expr, inner))
        case t.Branch():
            return _branch(ev, name, home.branches[name.text], frame)
        case _:
            assert_never(declared)


def declared_value(
    ev: Evaluator, declared: t.InputDecl | t.ConstDecl, home: Block, frame: Frame, name: t.Name | None = None
) -> Value:
    """An input or constant, named at ``name`` if anywhere."""

    def make() -> Value:
        if isinstance(declared, t.InputDecl):
            return input_of(ev, declared, home, frame)
        return constant(ev, declared, home, frame)

    return _once(ev, name or declared.name, ("declared", declared.name), frame, make)


def _once(ev: Evaluator, name: t.Name, key: object, frame: Frame, compute: Callable[[], Value]) -> Value:
    """The value of ``key``, computed the first time; a value that needs itself is an error."""
    if key in ev.values:
        return ev.values[key]
    if key in ev.running:
        return ev.error("E105", f"`{name.text}` is defined in terms of itself", name.span, frame, "needs itself")
    ev.running.add(key)
    try:
        ev.values[key] = compute()
    finally:
        ev.running.discard(key)
    return ev.values[key]


def _branch(ev: Evaluator, name: t.Name, branch: Block, frame: Frame) -> Node | Poison:
    from attnc.check.clauses import body_of

    if frame.clause not in ("output", "let") or frame.body is branch or frame.body.outer is not None:
        hint = "name it in the `output` of the attention"
        return ev.error("E404", f"the branch `{name.text}` is known in `output` alone", name.span, frame, hint=hint)
    body = body_of(ev, branch)
    if body is None or body.output.width is None:
        return POISON
    return ev.place(build.branch_output((name.text,), body.output.width), name.span, frame)


def always_there(ev: Evaluator, name: t.Name, frame: Frame) -> Value:
    """The value of ``b h i j``, of a size, of ``q k v``, or of another clause."""
    from attnc.check.clauses import attended, clause_value

    text = name.text
    if text in INDICES:
        return build.index(text)
    if text in SIZES:
        return build.size(text)
    if text in ("q", "k", "v"):
        if frame.clause in RAW:
            return build.token(text)
        ev.used.add((frame.body, text))
        return clause_value(ev, frame.body, {"q": "query", "k": "key", "v": "value"}[text])
    if text in ("I", "J") and frame.clause == "rank":
        return build.index(text)
    if frame.clause not in ALLOWED.get(text, ()):
        return ev.error("E401", f"`{text}` is not known in `{frame.clause}`", name.span, frame, hint=_order(text))
    if frame.body.branches and text in ("weight", "o", "score"):
        hint = f"name a branch: {', '.join(f'`{branch}`' for branch in frame.body.branches)}"
        return ev.error("E404", f"with branches there is no single `{text}`", name.span, frame, hint=hint)
    ev.used.add((frame.body, text))
    if text == "o":
        return attended(ev, frame.body)
    return clause_value(ev, frame.body, "normalize" if text == "weight" else text)


def _order(text: str) -> str:
    match text:
        case "score":
            return "`score` is known in `normalize` and `output`"
        case "I" | "J":
            return "block indices are known in the `rank` of a route; write `i // SIZE`"
        case "scale":
            return "`scale` is known where scores are made"
        case _:
            return f"`{text}` is known in `output`"


def coordinate(ev: Evaluator, expr: t.Coordinate, frame: Frame) -> Node | Poison:
    """``i.x``, ``j.x``, or the extent ``N.x``."""
    base, axis = expr.base.text, expr.axis.text
    block = frame.body.outer or frame.body
    if base not in ("i", "j", "N"):
        return ev.error("E108", f"`{base}` has no coordinates", expr.base.span, frame, hint="`i.x`, `j.x`, `N.x`")
    axes = [name.text for name, _ in block.space.axes] if block.space else []
    if block.is_file:
        return POISON
    if axis not in axes:
        hint = did_you_mean(axis, axes) or (f"its coordinates are {', '.join(axes)}" if axes else None)
        if not axes:
            return ev.error("E108", "this attention declares no space", expr.span, frame, "",
                            hint="declare one, as in `space (t: T, y: Y, x: X)`")  # fmt: skip
        return ev.error("E108", f"the space has no coordinate `{axis}`", expr.axis.span, frame, "unknown", hint)
    extents = [extent_of(ev, block, n) for n in range(len(axes))]
    if any(isinstance(extent, Poison) for extent in extents):
        return POISON
    at = axes.index(axis)
    if base == "N":
        return extents[at]
    inner: Node | Poison = build.literal(1)
    for extent in reversed(extents[at + 1 :]):
        inner = ev.build(build.apply, ("mul", extent, inner), expr.span, frame)
    position = ev.build(build.apply, ("floordiv", build.index(base), inner), expr.span, frame)
    if at == 0:
        return position
    return ev.build(build.apply, ("mod", position, extents[at]), expr.span, frame)


def suggested_read(source: Input) -> str:
    """How an input would be read, by the names of its dimensions."""
    usual = {"B": "b", "H": "h", "G": "g", "M": "row", "N": "j", "D": ":", "E": ":"}
    places = [usual.get(dim.name, "...") if isinstance(dim, Size) else "..." for dim in source.dims]
    return f"{source.name}[{', '.join(places)}]"
