"""What a kernel family is to compute, row by row and pass by pass; still nothing about tiles or devices.

A plan is the program rewritten so that every reduction over the keys is a named statistic or accumulator of some
pass. Within a pass the keys are seen once, in any order, in tiles; with each tile a running maximum may grow, and
everything summed relative to it is multiplied by ``exp(shift(old) - shift(new))``.

Expressions of a plan contain :class:`~attnc.ir.nodes.State` leaves by name: in the terms and shifts of the same
pass they stand for the running value, in later passes and in ``output`` and ``lse`` for the final one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal as OneOf

from attnc.ir.nodes import Input, Node
from attnc.ir.program import Program


class NotLowerable(Exception):
    """A program that has no plan. ``node`` is the part to underline (see ``Program.spans``), if one is to blame."""

    def __init__(self, message: str, node: Node | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.node = node
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number a row: ``max`` or ``sum`` of ``term`` over the visible keys.

    ``shift`` (sums only) is a row expression of running maxima; the running sum holds
    ``sum(term)`` relative to it, because ``term`` is ``exp(-shift)`` times something free of running maxima.
    """

    name: str
    op: OneOf["max", "sum"]
    term: Node
    shift: Node | None = None


@dataclass(frozen=True, slots=True)
class Accumulator:
    """A vector a row: the sum over the visible keys of ``term`` (a pair scalar) times ``value`` (a key vector)."""

    name: str
    term: Node
    value: Node
    shift: Node | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk over the keys. Maxima come before the sums that use them."""

    statistics: tuple[Statistic, ...]
    accumulators: tuple[Accumulator, ...]


@dataclass(frozen=True, slots=True)
class TokenMap:
    """Something computed once a token before any pass: ``expression`` varies over ``b h i`` or ``b h j`` only.

    Its result is read in the plan as the input ``result``, of dims ``[B, H or G, M or N]`` (``+ [width]`` for a
    vector). ``side`` tells queries from keys, ``per`` query heads from key heads.
    """

    result: Input
    side: OneOf["query", "key"]
    per: OneOf["H", "G"]
    expression: Node


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a backend needs. ``mask`` is the pair predicate, ``output`` and ``lse`` are row expressions.

    ``lse`` is the log-sum-exp of the row where the weight has one softmax denominator, else ``None``.
    """

    program: Program
    tokens: tuple[TokenMap, ...]
    mask: Node
    passes: tuple[Pass, ...]
    output: Node
    lse: Node | None
    notes: tuple[str, ...] = ()

    @property
    def family(self) -> OneOf["stream", "twopass"]:
        """``stream``: the keys are walked once; ``twopass``: statistics need walks of their own."""
        return "stream" if len(self.passes) == 1 else "twopass"
