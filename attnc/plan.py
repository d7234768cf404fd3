"""What a kernel family is to compute, row by row and pass by pass; still nothing about tiles or devices.

A plan is the program rewritten so that every reduction over the keys is a named statistic or accumulator of some
pass. Within a pass the keys are seen once, in any order, in tiles; with each tile a running maximum may grow, and
everything summed relative to it is multiplied by ``exp(shift(old) - shift(new))``.

Expressions of a plan contain :class:`~attnc.ir.nodes.State` leaves by name: in the terms and shifts of the same
pass they stand for the running value, in later passes and in ``output`` and ``lse`` for the final one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal as OneOf

from attnc.ir.build import apply, literal
from attnc.ir.nodes import Input, Node, State
from attnc.ir.printer import expression
from attnc.ir.program import Program
from attnc.ir.traverse import postorder


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

    @property
    def summand(self) -> Node:
        """``term * value``, a vector."""
        return self.value if self.term is literal(1.0) else apply("mul", self.term, self.value)


@dataclass(frozen=True, slots=True)
class Pass:
    """One walk over the keys. Maxima come before the sums that use them."""

    statistics: tuple[Statistic, ...]
    accumulators: tuple[Accumulator, ...]

    @property
    def parts(self) -> tuple[Statistic | Accumulator, ...]:
        """Statistics, then accumulators."""
        return (*self.statistics, *self.accumulators)

    @property
    def roots(self) -> tuple[Node, ...]:
        """The terms, values and shifts, in order."""
        found: list[Node] = []
        for part in self.parts:
            value = (part.value,) if isinstance(part, Accumulator) else ()
            found += [part.term, *value, *(() if part.shift is None else (part.shift,))]
        return tuple(found)


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

    @property
    def roots(self) -> tuple[Node, ...]:
        """Every expression but those of the token maps, in the order of evaluation."""
        passes = (node for step in self.passes for node in step.roots)
        return (self.mask, *passes, self.output, *(() if self.lse is None else (self.lse,)))

    def __str__(self) -> str:
        return format_plan(self)


def format_plan(plan: Plan) -> str:
    """A plan in the notation of the language; what stands in it more than once is named where it is first used.

    A sum ``relative to c`` is multiplied by ``exp(c(old) - c(new))`` whenever ``c`` grows.
    """
    printer = PlanPrinter(plan)
    count = len(plan.passes)
    lines = [f"plan {plan.program.name}: {count} pass{'es' if count > 1 else ''} over the keys"]
    for token_map in plan.tokens:
        dims = ", ".join(expression(dim) for dim in token_map.result.dims)
        lines.append(f"token {token_map.result.name}[{dims}] = {expression(token_map.expression)}")
    lines += printer.lines("", "mask", plan.mask)
    for number, step in enumerate(plan.passes, 1):
        lines.append(f"pass {number}")
        for s in step.statistics:
            lines += printer.lines("    ", f"{s.op} {s.name} =", s.term, s.shift)
        for a in step.accumulators:
            lines += printer.lines("    ", f"acc {a.name} =", a.summand, a.shift)
    lines += printer.lines("", "output", plan.output)
    if plan.lse is not None:
        lines += printer.lines("", "lse", plan.lse)
    return "\n".join(lines) + "\n"


class PlanPrinter:
    """Prints the expressions of a plan one by one, with names for states and for what several of them share."""

    def __init__(self, plan: Plan) -> None:
        self.shared = _shared(plan.roots)
        self.names: dict[Node, str] = {node: node.name for node in postorder(*plan.roots) if isinstance(node, State)}
        self.count = 0

    def define(self, *roots: Node) -> list[str]:
        """``let`` lines of the names that ``roots`` are the first to use."""
        lines: list[str] = []
        for node in postorder(*roots):
            if node in self.shared and node not in self.names:
                lines.append(f"let t{self.count} = {expression(node, self.names)}")
                self.names[node] = f"t{self.count}"
                self.count += 1
        return lines

    def text(self, node: Node) -> str:
        """The expression, of names defined before."""
        return expression(node, self.names)

    def lines(self, indent: str, label: str, root: Node, shift: Node | None = None) -> list[str]:
        """The line of an expression, after those of the names that it is the first to use."""
        lines = self.define(*((root,) if shift is None else (root, shift)))
        relative = "" if shift is None else f"  relative to {self.text(shift)}"
        return [indent + line for line in (*lines, f"{label} {self.text(root)}{relative}")]


def _shared(roots: Sequence[Node]) -> frozenset[Node]:
    """What is used in more than one place and is worth a name."""
    uses = Counter(roots)
    nodes = list(postorder(*roots))
    uses.update(child for node in nodes for child in node.children)
    return frozenset(
        node
        for node in nodes
        if uses[node] > 1 and any(child.children for child in node.children) and not node.is_vector
    )
