"""A checked spec: what one attention computes, as a graph, with nothing about how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from attnc.grammar.source import Span
from attnc.ir import build
from attnc.ir.nodes import Input, Kind, Node, Size, Window
from attnc.ir.traverse import postorder

DEFAULT_GROUP = build.apply("floordiv", build.index("h"), build.apply("floordiv", build.size("H"), build.size("G")))
"""The key head of a query head where the spec has no `groups` clause: the heads of a group are neighbours."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A run-time number the caller may pass. ``default`` is ``None`` where it must."""

    name: str
    kind: Kind
    default: int | float | None


@dataclass(frozen=True, slots=True)
class Select:
    """How candidates become chosen: ``top(n)``, ``mass(p, least, crossing)``, ``above(x)``, ``given(blocks)``.

    ``top`` of a real is a share of the candidates. The blocks of ``given`` are an ``int`` vector of block numbers or a
    truth value for each block ``J``. ``top`` and ``mass`` have a ``scope``: ``chooser``, ``head`` or ``heads``.
    """

    how: str
    args: tuple[Node, ...]
    options: tuple[tuple[str, Node | str], ...]

    def map(self, fn: Callable[[Node], Node]) -> Select:
        """This rule with ``fn`` applied to every expression."""
        options = tuple((name, value if isinstance(value, str) else fn(value)) for name, value in self.options)
        return Select(self.how, tuple(map(fn, self.args)), options)


@dataclass(frozen=True, slots=True)
class Route:
    """A data-dependent restriction of the visible pairs (language.md, section 6).

    ``queries`` says who chooses: each ``query``, ``queries`` in blocks of ``queries_block`` together, or the ``head``.
    ``"keep"`` is the other way round: the head chooses its queries by ``rank``, and the others see nothing.

    A block is visible to a chooser if one of their pairs is. ``candidates`` says which visible blocks are ranked, all
    if it is ``None``. ``always`` are visible blocks taken before the ranked ones and counted with them, ``also`` those
    taken besides. Both hold ``("self", None)``, ``("first", n)``, ``("last", n)`` and ``("where", condition)``.
    """

    keys_block: Node
    queries: str
    queries_block: Node | None
    rank: Node | None
    select: Select | None
    always: tuple[tuple[str, Node | None], ...]
    also: tuple[tuple[str, Node | None], ...] = ()
    candidates: Node | None = None
    span: Span | None = field(default=None, compare=False, repr=False)

    def roots(self) -> Iterator[Node]:
        """Every expression of the route."""
        yield self.keys_block
        yield from (node for node in (self.queries_block, self.rank, self.candidates) if node is not None)
        if self.select:
            yield from self.select.args
            yield from (value for _, value in self.select.options if not isinstance(value, str))
        yield from (node for _, node in (*self.always, *self.also) if node is not None)

    def map(self, fn: Callable[[Node], Node]) -> Route:
        """This route with ``fn`` applied to every expression."""
        return replace(
            self,
            keys_block=fn(self.keys_block),
            queries_block=None if self.queries_block is None else fn(self.queries_block),
            rank=None if self.rank is None else fn(self.rank),
            select=self.select and self.select.map(fn),
            candidates=None if self.candidates is None else fn(self.candidates),
            always=tuple((name, None if node is None else fn(node)) for name, node in self.always),
            also=tuple((name, None if node is None else fn(node)) for name, node in self.also),
        )


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

    @property
    def windows(self) -> tuple[Node, Node] | None:
        """Length and stride of the windows that stand for the keys; ``None`` where the keys are the tokens."""
        for node in postorder(self.mask, self.score, self.weight, self.value, self.output):
            if isinstance(node, Window) and node.axis == "j":
                return node.length, node.stride
        return None

    def roots(self) -> Iterator[tuple[str, Node]]:
        """Every expression of the body, each with the name of its clause."""
        for route in self.routes:
            yield from (("route", node) for node in route.roots())
        for clause in ("mask", "score", "weight", "value", "output"):
            yield clause, getattr(self, clause)

    def map(self, fn: Callable[[Node], Node]) -> Body:
        """This body with ``fn`` applied to every root."""
        routes = tuple(route.map(fn) for route in self.routes)
        return Body(fn(self.mask), fn(self.score), fn(self.weight), fn(self.value), fn(self.output), routes)


LISTED = build.apply("ge", build.index("j"), build.literal(0))
"""The mask of a program whose lists hold visible keys alone; rows may be empty all the same."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The keys that each row may see, by number: two inputs of the program, which nothing else of it reads.

    ``numbers`` is ``int[B, heads, M, L]``, ``counts`` ``int[B, heads, M]``: the first ``counts`` numbers of a row are
    keys, each once, in any order; what follows means nothing. ``heads`` is ``H``, ``G`` (the query heads of a key head
    share a list) or 1. ``L`` is the length of the longest list there could be.
    """

    numbers: Input
    counts: Input

    @property
    def heads(self) -> str:
        """``H``, ``G`` or nothing: who has a list."""
        dim = self.counts.dims[1]
        return dim.name if isinstance(dim, Size) else ""

    def map(self, fn: Callable[[Input], Input]) -> Listed:
        """The same of other declarations."""
        return Listed(fn(self.numbers), fn(self.counts))


@dataclass(frozen=True, slots=True)
class Program:
    """A whole spec. ``group`` is the key/value head as a function of ``h``; ``extents`` are the sizes of the
    space that the caller passes (or that follow from ``N``), in order. With branches, ``body.output`` combines
    :class:`~attnc.ir.nodes.BranchOutput` nodes, and the rest of ``body`` says nothing. A pair is visible if the mask
    says so and, with ``listed``, its key is on the list of its row.
    """

    name: str
    inputs: tuple[Input, ...]
    parameters: tuple[Parameter, ...]
    space: tuple[tuple[str, Node], ...]
    group: Node
    body: Body
    branches: tuple[tuple[str, Body], ...] = ()
    widths: tuple[int, int] | None = None
    listed: Listed | None = None
    spans: Mapping[Node, Span] = field(default_factory=dict, compare=False, repr=False)

    @property
    def extents(self) -> tuple[str, ...]:
        """Names of the extents of the space that are run-time sizes."""
        names = (extent.name for _, extent in self.space if isinstance(extent, Size))
        return tuple(dict.fromkeys(names))

    def roots(self) -> Iterator[tuple[str, Node]]:
        """Every expression of the program, each with the words that say which it is."""
        for declared in self.inputs:
            yield from ((f"input {declared.name}", dim) for dim in declared.dims)
        yield from ((f"space {name}", extent) for name, extent in self.space)
        yield "group", self.group
        for name, body in self.branches:
            yield from ((f"branch {name}: {clause}", node) for clause, node in body.roots())
        yield from self.body.roots()

    def map(self, fn: Callable[[Node], Node]) -> Program:
        """This program with ``fn`` applied to every root; ``fn`` also says what becomes of the inputs that are read."""

        def mapped(declared: Input) -> Input:
            return replace(declared, dims=tuple(map(fn, declared.dims)))

        return replace(
            self,
            inputs=tuple(map(mapped, self.inputs)),
            listed=self.listed and self.listed.map(mapped),
            space=tuple((name, fn(extent)) for name, extent in self.space),
            group=fn(self.group),
            body=self.body.map(fn),
            branches=tuple((name, body.map(fn)) for name, body in self.branches),
        )
