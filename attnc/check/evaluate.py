"""From an expression of the syntax tree to a node of the IR."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from attnc.check import names
from attnc.check.binding import bind
from attnc.check.block import Block
from attnc.check.fold import checked_literal, fold
from attnc.check.frame import Frame
from attnc.check.functions import Function
from attnc.check.intrinsics import INTRINSICS
from attnc.check.report import Report, TooMuch, did_you_mean
from attnc.check.subscripts import subscript
from attnc.check.values import POISON, Matrix, Poison, Running, Value, Whole
from attnc.grammar import Span
from attnc.grammar import tree as t
from attnc.ir import build
from attnc.ir.build import IllTyped
from attnc.ir.nodes import Node, Read
from attnc.ir.ops import OPS
from attnc.ir.program import Body

MAX_LEVELS = 120
MAX_DEPTH = 220
MAX_STEPS = 50_000

OF_SYMBOL = {op.symbol: op.name for op in OPS.values() if op.symbol and op.arity == 2}


class Evaluator:
    """Evaluates the expressions of one attention block, collecting errors and the places of nodes."""

    def __init__(self, report: Report, constants: Mapping[str, int | float | bool] | None) -> None:
        self.report = report
        self.constants = constants
        self.spans: dict[Node, Span] = {}
        self.places: dict[Node, list[Span]] = {}
        self.used: set[tuple[Block, str]] = set()
        self.values: dict[object, Value] = {}
        self.running: set[object] = set()
        self.bodies: dict[Block, Body | None] = {}
        self._depths: dict[Node, int] = {}
        self._level = 0
        self._steps = 0

    # --- reporting --------------------------------------------------------------------------------

    def error(
        self, code: str, message: str, span: Span, frame: Frame, label: str = "", hint: str | None = None
    ) -> Poison:
        """Report an error at the place of ``span`` and poison the value."""
        place = frame.locate(span)
        self.report.add(code, message, place, label if place is span else "", hint, frame.notes(span))
        return POISON

    def build(
        self,
        make: Callable[..., Node],
        args: Sequence[object],
        span: Span,
        frame: Frame,
        operands: Sequence[Span] = (),
    ) -> Node | Poison:
        """``make(*args)``, folded; what does not fit is reported, at the operand to blame if that is known."""
        if any(isinstance(arg, Poison) for arg in args):
            return POISON
        try:
            node = fold(make(*args))
        except IllTyped as wrong:
            blamed = operands[wrong.operand] if wrong.operand is not None and wrong.operand < len(operands) else span
            return self.error("E201", str(wrong), blamed, frame, hint=wrong.hint)
        return self.place(node, span, frame)

    def place(self, node: Node, span: Span, frame: Frame) -> Node | Poison:
        """Remember where a node first occurred, and refuse graphs too deep to walk."""
        self.spans.setdefault(node, frame.locate(span))
        if isinstance(node, Read):
            self.places.setdefault(node, []).append(span)
        if self._depth(node) > MAX_DEPTH:
            return self.error("E902", f"this is nested too deeply: the limit is {MAX_DEPTH} operations", span, frame)
        return node

    def _depth(self, node: Node) -> int:
        known = self._depths.get(node)
        if known is None:
            known = 1 + max((self._depth(child) for child in node.children), default=0)
            self._depths[node] = known
        return known

    # --- expressions --------------------------------------------------------------------------------

    def node(self, expr: t.Expr, frame: Frame) -> Node | Poison:
        """The value of an expression that must be a number, truth value or vector."""
        return self.as_node(self.value(expr, frame), expr, frame)

    def as_node(self, value: Value, expr: t.Expr, frame: Frame) -> Node | Poison:
        """``value``, if it is more than a name for something to be read; a 0-dimensional input is read."""
        match value:
            case Node() | Poison():
                return value
            case Whole(input=source) if not source.dims:
                return self.build(build.read, (source, ()), expr.span, frame)
            case Whole(input=source):
                hint = f"did you mean `{names.suggested_read(source)}`?"
                return self.error("E204", f"`{source.name}` is a tensor and must be read", expr.span, frame,
                                  "a tensor", hint)  # fmt: skip
            case Running():
                hint = "read it at the query or the key: `G[b, h, i]`, `G[b, h, j]`"
                return self.error("E204", "a running sum must be read at a position", expr.span, frame, hint=hint)
            case Matrix():
                hint = "use `matmul(a, w[h, :, :])`"
                return self.error("E204", "a read with two open axes is a matrix", expr.span, frame, hint=hint)

    def value(self, expr: t.Expr, frame: Frame) -> Value:
        """The value of an expression."""
        self._steps += 1
        if self._level >= MAX_LEVELS:
            return self.error("E902", f"this is nested too deeply: the limit is {MAX_LEVELS} levels", expr.span, frame)
        if self._steps > MAX_STEPS:
            self.error("E901", "this spec is too large once its functions are inlined", expr.span, frame)
            raise TooMuch
        self._level += 1
        try:
            return self._value(expr, frame)
        finally:
            self._level -= 1

    def _value(self, expr: t.Expr, frame: Frame) -> Value:
        match expr:
            case t.Name():
                return names.value(self, expr, frame)
            case t.Number(value=number):
                return self.build(checked_literal, (number,), expr.span, frame)
            case t.Truth(value=truth):
                return build.literal(truth)
            case t.Coordinate():
                return names.coordinate(self, expr, frame)
            case t.Unary(op=op, x=x):
                return self.build(
                    build.apply, ("neg" if op == "-" else "not", self.node(x, frame)), expr.span, frame, [x.span]
                )
            case t.Binary(op=op, a=a, b=b):
                args = (OF_SYMBOL[op], self.node(a, frame), self.node(b, frame))
                return self.build(build.apply, args, expr.span, frame, [a.span, b.span])
            case t.Compare():
                return self._compare(expr, frame)
            case t.Conditional(then=then, condition=condition, otherwise=otherwise):
                parts = (condition, then, otherwise)
                args_ = ("where", *(self.node(part, frame) for part in parts))
                return self.build(build.apply, args_, expr.span, frame, [part.span for part in parts])
            case t.Call():
                return self._call(expr, frame)
            case t.Subscript():
                return subscript(self, expr, frame)
            case _:
                assert_never(expr)

    def _compare(self, expr: t.Compare, frame: Frame) -> Node | Poison:
        operands = [expr.first, *(x for _, x in expr.rest)]
        nodes = [self.node(x, frame) for x in operands]
        result: Node | Poison | None = None
        for n, (op, _) in enumerate(expr.rest):
            spans = [operands[n].span, operands[n + 1].span]
            link = self.build(build.apply, (OF_SYMBOL[op], nodes[n], nodes[n + 1]), expr.span, frame, spans)
            result = link if result is None else self.build(build.apply, ("and", result, link), expr.span, frame)
        assert result is not None
        return result

    # --- calls --------------------------------------------------------------------------------------

    def _call(self, call: t.Call, frame: Frame) -> Value:
        name = call.function.text
        function = frame.scope.find(name)
        if function is not None:
            parameters = [parameter.name.text for parameter in function.declared.parameters]
            given = bind(self, call, parameters, function.required, frame)
            if given is None:
                return POISON
            return self.call(function, {key: self.value(x.value, frame) for key, x in given.items()}, call.span, frame)
        intrinsic = INTRINSICS.get(name)
        if intrinsic is not None:
            return intrinsic(self, call, frame)
        for argument in call.arguments:
            self.value(argument.value, frame)
        if names.is_value(name, frame):
            hint = f"write `{name}[...]` to read it, `{name} * (...)` to multiply"
            return self.error("E106", f"`{name}` is not a function", call.function.span, frame, hint=hint)
        hint_ = did_you_mean(name, {*frame.scope.names(), *INTRINSICS})
        return self.error("E102", f"there is no function `{name}`", call.function.span, frame, "unknown", hint_)

    def call(self, function: Function, given: Mapping[str, Value], span: Span, frame: Frame) -> Value:
        """The body of a function with arguments for its parameters, inlined."""
        if function.recursive or POISON in given.values():
            return POISON
        inner = frame.enter(function, span, given)
        for parameter in function.declared.parameters:
            if parameter.name.text not in given:
                assert parameter.default is not None
                given = {**given, parameter.name.text: self.value(parameter.default, inner)}
                inner = replace(inner, values=given)
        key = (function, frame.clause, frame.body, tuple(given.items()))
        if key not in self.values:
            self.values[key] = self.value(function.declared.body, inner)
        return self.values[key]
