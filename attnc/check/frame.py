"""Where an expression stands: what it may name, and how to point at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from attnc.check.functions import Function, Scope
from attnc.check.values import Value
from attnc.grammar import STD_NAME, Span

if TYPE_CHECKING:
    from attnc.check.block import Block

RAW = frozenset({"query", "key", "value", "solve"})
"""Clauses in which ``q k v`` are the rows the caller passed; elsewhere they are what these clauses made of them."""

_SCALED = "query key value solve mask score normalize output rank keep let"

ALLOWED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "score": frozenset({"normalize", "output", "let"}),
        "weight": frozenset({"output", "let"}),
        "o": frozenset({"output", "let"}),
        "scale": frozenset(_SCALED.split()),
        "reduction": frozenset({"score", "normalize", "output", "rank", "let"}),
    }
)
"""In which clauses the names that stand for other clauses, and reductions over the keys, may appear."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The surroundings of an expression.

    ``body`` is the attention (or branch) being computed, which says what ``q`` or ``score`` mean; ``home`` the block
    whose declarations are in sight; ``values`` the parameters of the function that is being inlined; ``calls`` the
    calls that led into it, outermost first.
    """

    clause: str
    scope: Scope
    body: Block
    home: Block | None
    values: Mapping[str, Value] = field(default_factory=dict)
    calls: tuple[tuple[str, Span], ...] = ()

    def enter(self, function: Function, call: Span, values: Mapping[str, Value]) -> Frame:
        """The frame of the body of ``function``, called at ``call``."""
        return replace(
            self,
            scope=function.scope,
            values=values,
            home=function.home,
            calls=(*self.calls, (function.declared.name.text, call)),
        )

    def locate(self, span: Span) -> Span:
        """The place to show for ``span``: itself, or for the prelude the call that led into it."""
        if span.source.name != STD_NAME:
            return span
        for _, call in reversed(self.calls):
            if call.source.name != STD_NAME:
                return call
        return self.body.name.span

    def notes(self, span: Span) -> tuple[str, ...]:
        """How the place of an error was reached."""
        if span.source.name == STD_NAME:
            inside = f"in `{self.calls[-1][0]}`" if self.calls else "in the clause that stands when none is written"
            return (f"{inside}, at {span}: `{' '.join(span.text.split())}`",)
        return tuple(f"in `{name}`, called at {call}" for name, call in reversed(self.calls))
