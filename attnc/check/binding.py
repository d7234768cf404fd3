"""Matching the arguments of a call to parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnc.check.frame import Frame
from attnc.check.report import did_you_mean
from attnc.grammar import tree as t

if TYPE_CHECKING:
    from attnc.check.evaluate import Evaluator


def bind(
    ev: Evaluator, call: t.Call, parameters: Sequence[str], required: int, frame: Frame
) -> dict[str, t.Argument] | None:
    """Arguments by parameter; ``None``, and an error reported, where they do not match."""
    name = call.function.text
    given: dict[str, t.Argument] = {}
    good = True
    for position, argument in enumerate(call.arguments):
        if argument.name is None and position >= len(parameters):
            takes = f"`{name}` takes {_count(len(parameters))}, found {len(call.arguments)}"
            ev.error("E107", takes, argument.span, frame, "one too many", _usage(name, parameters))
            return None
        key = parameters[position] if argument.name is None else argument.name.text
        if argument.name is not None and key not in parameters:
            hint = did_you_mean(key, parameters) or _usage(name, parameters)
            ev.error("E107", f"`{name}` has no parameter `{key}`", argument.name.span, frame, hint=hint)
            good = False
        elif key in given:
            ev.error("E107", f"`{key}` is given twice", argument.span, frame)
            good = False
        else:
            given[key] = argument
    missing = [parameter for parameter in parameters[:required] if parameter not in given]
    if good and missing:
        listed = ", ".join(f"`{parameter}`" for parameter in missing)
        ev.error("E107", f"`{name}` misses {listed}", call.span, frame, hint=_usage(name, parameters))
    return given if good and not missing else None


def _count(number: int) -> str:
    return "no argument" if number == 0 else "1 argument" if number == 1 else f"{number} arguments"


def _usage(name: str, parameters: Sequence[str]) -> str:
    return f"`{name}({', '.join(parameters)})`" if parameters else f"write `{name}` alone"
