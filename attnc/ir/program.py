"""A checked spec: what one attention computes, as a graph, with nothing about how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from attnc.grammar.source import Span
from attnc.ir.nodes import Input, Kind, Node, Size


@dataclass(frozen=True, slots=True)
class Parameter:
    """A run-time number the caller may pass. ``default`` is ``None`` where it must."""

    name: str
    kind: Kind
    default: int | float | None


@dataclass(frozen=True, slots=True)
class Select:
    """How candidates become chosen: ``top(n)``, ``mass(p, least, crossing)``, ``above(x)``, ``given(input)``."""

    how: str
    args: tuple[Node, ...]
    options: tuple[tuple[str, Node | str], ...]


@dataclass(frozen=True, slots=True)
class Route:
    """A data-dependent restriction of the visible pairs (language.md, section 6)."""

    keys_block: Node
    queries: str  # "query", "queries" or "head"
    queries_block: Node | None
    rank: Node | None
    select: Select | None
    always: tuple[tuple[str, Node | None], ...]
    over: str | None  # "group", "heads" or None


@dataclass(frozen=True, slots=True)
class Body:
    """One attention over q, k, v: visible pairs, their weight, and what is summed.

    ``score`` and ``weight`` are scalars over ``b h i j``, ``value`` a vector over ``b h j`` (or also ``i``), and
    ``output`` a vector over ``b h i`` in which the attended value is ``Reduce("sum", "j", weight * value)``.
    Query and key prologues are already substituted into ``score``.
    """

    mask: Node
    score: Node
    weight: Node
    value: Node
    output: Node
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """A whole spec. ``group`` is the key/value head as a function of ``h``; ``extents`` are the sizes of the
    space that the caller passes (or that follow from ``N``), in order. With branches, ``body.output`` combines
    :class:`~attnc.ir.nodes.BranchOutput` nodes.
    """

    name: str
    inputs: tuple[Input, ...]
    parameters: tuple[Parameter, ...]
    space: tuple[tuple[str, Node], ...]
    group: Node
    body: Body
    branches: tuple[tuple[str, Body], ...] = ()
    spans: Mapping[Node, Span] = field(default_factory=dict, compare=False, repr=False)

    @property
    def extents(self) -> tuple[str, ...]:
        """Names of the extents of the space that are run-time sizes."""
        return tuple(extent.name for _, extent in self.space if isinstance(extent, Size))
