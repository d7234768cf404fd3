"""What a backward consists of: token maps, walks over keys or rows, scatters; and what each gradient is made of."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Literal as OneOf
from typing import TypeAlias

from attnc.ir.nodes import Input, Node, Read
from attnc.ir.traverse import postorder
from attnc.plan import Plan, TokenMap


@dataclass(frozen=True, slots=True)
class Sum:
    """One result of a walk: the sum over the visible pairs of ``term``, times ``value`` where it is a vector."""

    result: Input
    term: Node
    value: Node | None


@dataclass(frozen=True, slots=True)
class Walk:
    """Sums over the keys a row sees (``over="keys"``) or over the rows that see a key (``over="rows"``), per head.

    A walk over the keys writes ``[B, H, M]`` or ``[B, H, M, width]``, one over the rows ``[B, H, N]`` or
    ``[B, H, N, width]``, or ``[B, G, N]`` and ``[B, G, N, width]`` where it sums over the query heads of a group too.
    """

    over: OneOf["keys", "rows"]
    sums: tuple[Sum, ...]


@dataclass(frozen=True, slots=True)
class Scatter:
    """``result[b, h, *indices] += term`` for every visible pair. ``result`` starts at zero.

    Sums must not depend on the order in which pairs are met: the same bits for the same call.
    """

    result: Input
    term: Node
    indices: tuple[Node, ...]


Step: TypeAlias = TokenMap | Walk | Scatter


@dataclass(frozen=True, slots=True)
class Contribution:
    """A part of the gradient of q, k, v, an input or a parameter: ``result``, summed to where ``at`` was read.

    ``at`` is the token, part of a token, read or parameter that it belongs to. For ``level="query"`` and ``"key"``
    the result is that of a token map, ``[B, H, M]`` or ``[B, H, N]`` (per query head, also for k and v; ``[B, G, N]``
    where the heads of a group are summed), with a width if the cotangent is a vector; a scalar stands for a vector of
    equal elements. For ``"pair"`` it is that of a scatter: ``[B, H]`` and the dimensions of the input that are not
    read at ``b``, ``h`` or ``g``.
    """

    name: str
    level: OneOf["query", "key", "pair"]
    at: Node
    result: Input


@dataclass(frozen=True, slots=True)
class Backward:
    """The derived backward of a plan.

    Attributes:
        plan: what it is the backward of; its program declares the inputs, its mask says which pairs are visible.
        saved: the names of the final states that the forward keeps.
        reads: what the steps read besides q, k, v and the inputs of the program: ``d_out``, ``d_lse``, ``out`` and
            ``saved_<state>``, as far as they are used.
        steps: in order; each may read the results of those before it.
        contributions: what the gradients are made of. What has none has a gradient of zero.
        shifts: running maxima that are constants to the derivative, because the result is invariant to them.
    """

    plan: Plan
    saved: tuple[str, ...]
    reads: tuple[Input, ...]
    steps: tuple[Step, ...]
    contributions: tuple[Contribution, ...]
    shifts: tuple[Node, ...]

    @property
    def results(self) -> tuple[Input, ...]:
        """What a kernel writes for its caller: the result of each contribution."""
        return tuple(contribution.result for contribution in self.contributions)

    def only(self, names: Container[str]) -> Backward:
        """What is left if only the gradients of ``names`` are wanted."""
        contributions = tuple(c for c in self.contributions if c.name in names)
        needed = {c.result.name for c in contributions}
        steps: list[Step] = []
        for step in reversed(self.steps):
            if isinstance(step, Walk):
                step = replace(step, sums=tuple(one for one in step.sums if one.result.name in needed))
            if not needed.isdisjoint(result.name for result in results_of(step)):
                steps.append(step)
                needed |= read_by(step)
        reads = tuple(source for source in self.reads if source.name in needed)
        saved = tuple(name for name in self.saved if f"saved_{name}" in needed)
        return replace(self, saved=saved, reads=reads, steps=tuple(reversed(steps)), contributions=contributions)


def results_of(step: Step) -> tuple[Input, ...]:
    """What a step writes."""
    match step:
        case Walk(sums=sums):
            return tuple(one.result for one in sums)
        case TokenMap(result=result) | Scatter(result=result):
            return (result,)


def expressions_of(step: Step) -> tuple[Node, ...]:
    """What a step computes."""
    match step:
        case Walk(sums=sums):
            return tuple(root for one in sums for root in (one.term, one.value) if root is not None)
        case TokenMap(expression=expression):
            return (expression,)
        case Scatter(term=term, indices=indices):
            return (term, *indices)


def read_by(step: Step) -> set[str]:
    """The names of the inputs and results that a step reads."""
    return {node.input.name for node in postorder(*expressions_of(step)) if isinstance(node, Read)}


def map_step(step: Step, fn: Callable[[Node], Node]) -> Step:
    """The step with ``fn`` applied to its expressions."""
    match step:
        case TokenMap(expression=expression):
            return replace(step, expression=fn(expression))
        case Scatter(term=term, indices=indices):
            return replace(step, term=fn(term), indices=tuple(map(fn, indices)))
        case Walk(sums=sums):
            mapped = tuple(Sum(s.result, fn(s.term), None if s.value is None else fn(s.value)) for s in sums)
            return replace(step, sums=mapped)
