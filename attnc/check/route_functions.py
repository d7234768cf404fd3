"""Functions of routes, branches and triangular systems."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from attnc.check.binding import bind
from attnc.check.frame import Frame
from attnc.check.values import POISON, Value
from attnc.grammar import tree as t
from attnc.ir import build

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator


def solve(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    """``solve(pair, x)``: ``L^-1 x``; inside ``pair``, ``k[i]`` and ``k[j]`` are the keys of the two tokens."""
    given = bind(ev, call, ["pair", "x"], 2, frame)
    if given is None:
        return POISON
    if frame.clause not in ("value", "let"):
        hint = "write `value solve(..., v)`"
        return ev.error("E401", "`solve` makes values", call.span, frame, hint=hint)
    pair = ev.node(given["pair"].value, replace(frame, clause="solve"))
    x = ev.node(given["x"].value, frame)
    return ev.build(build.solve, (pair, x), call.span, frame, [given["pair"].span, given["x"].span])


def merge(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    return ev.error("E404", "`merge` is not known", call.span, frame)


def pool(op: str, ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    return ev.error("E404", f"`{op}` is not known", call.span, frame)


def total(ev: Evaluator, call: t.Call, frame: Frame) -> Value:
    return ev.error("E404", "`sum` is not known", call.span, frame)
