"""The nodes of the expression graph.

A node is immutable and interned: building the same node twice gives the same object, so that ``is`` is
structural equality, common subexpressions are shared by construction, and a graph hashes in constant time a
node. Nodes know their kind, the axes they vary over and, for a vector over the head dimension, their width.
Where a node came from is not its business: ``Program.spans`` holds that.

Make nodes with :mod:`attnc.ir.build`, which infers and checks; these constructors trust their arguments.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias
from typing import Literal as OneOf
from weakref import WeakValueDictionary


class Kind(enum.StrEnum):
    """What a scalar is, or what the elements of a vector are."""

    INT = "int"
    REAL = "real"
    BOOL = "bool"


Axes: TypeAlias = frozenset[str]
"""Which of ``b h i j`` a value varies over: batch row, query head (or its key head), query row, key.

In the rank of a route also ``I`` and ``J``, blocks of queries and of keys, ``w``, windows of keys, and ``n0``, ``n1``,
... of a ``Bound``.
"""

NO_AXES: Axes = frozenset()
ROW_AXES: Axes = frozenset("bhi")


class _Interned(type):
    """Calling a class returns the one live instance with these fields."""

    _live: ClassVar[WeakValueDictionary[Any, Any]] = WeakValueDictionary()

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        node = super().__call__(*args, **kwargs)
        return _Interned._live.setdefault(node.identity(), node)


@dataclass(frozen=True, slots=True, eq=False, repr=False, weakref_slot=True)
class Node(metaclass=_Interned):
    """What every node knows. ``width`` is ``None`` for a scalar, else a static ``int`` node."""

    kind: Kind
    axes: Axes
    width: Node | None

    def identity(self) -> tuple[Any, ...]:
        """The tuple that is equal for equal nodes; children are compared by identity."""
        fields = type(self).__dataclass_fields__
        return (type(self), *(getattr(self, name) for name in fields))

    @property
    def children(self) -> tuple[Node, ...]:
        """The nodes this one is computed from, in order."""
        return ()

    @property
    def is_vector(self) -> bool:
        return self.width is not None

    def __repr__(self) -> str:
        from attnc.ir.printer import expression

        return f"<{expression(self, depth=4)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and unpickled nodes are interned too."""
        make, *fields = self.identity()
        return make, tuple(fields)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Literal(Node):
    """A number or truth value. ``kind`` tells ``1`` from ``1.0`` from ``True``."""

    value: int | float | bool


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Size(Node):
    """An ``int`` that is the same for a whole call: ``B H G M N``, ``D E`` (static), or an extent of a space."""

    name: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Index(Node):
    """A position: ``b h g row i j``. ``i = row + N - M``; ``g`` is the key/value head of ``h``.

    ``I`` and ``J`` are the blocks of query and key in the rank of a route.
    """

    name: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Param(Node):
    """A run-time number of the spec (``param``)."""

    name: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Token(Node):
    """The raw vectors ``q[b,h,row,:]``, ``k[b,g,j,:]`` (width D) and ``v[b,g,j,:]`` (width E).

    ``$k`` is ``k[b,g,i,:]``, the key of the query's own position; it occurs in the pairs of a :class:`Solve` alone.
    """

    name: OneOf["q", "k", "v", "$k"]


@dataclass(frozen=True, slots=True)
class Input:
    """The declaration of a tensor the caller passes. ``dims`` are ``int`` nodes without axes."""

    name: str
    kind: Kind
    dims: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Read(Node):
    """An element of an input, or a row of it: ``None`` in ``indices`` is an axis left open (``:``).

    One open axis makes a vector; two make the matrix of :class:`MatVec` and appear nowhere else.
    """

    input: Input
    indices: tuple[Node | None, ...]

    @property
    def children(self) -> tuple[Node, ...]:
        return tuple(index for index in self.indices if index is not None)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Apply(Node):
    """An operation of :data:`attnc.ir.ops.OPS` on scalars, or element by element on vectors.

    A scalar among vectors is repeated over the width.
    """

    op: str
    args: tuple[Node, ...]

    @property
    def children(self) -> tuple[Node, ...]:
        return self.args


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dot(Node):
    """``sum_d a[d] * b[d]``: the product that tensor cores compute."""

    a: Node
    b: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.a, self.b)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Reduce(Node):
    """A reduction over the visible keys (``over="j"``) or over the width of a vector (``over="d"``).

    Over ``j``, a vector is reduced element by element: ``o`` is ``Reduce("sum", "j", weight * value)``.
    Over no key, ``sum`` is 0 and ``max`` is minus infinity. In the rank of a route, ``over="J"`` is over the
    candidate blocks of the chooser, ``over="w"`` over the windows whose every key is visible to it.
    """

    op: OneOf["sum", "max"]
    over: OneOf["j", "d", "J", "w"]
    x: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.x,)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Slice(Node):
    """Elements ``lo`` to ``hi`` (exclusive) of a vector; both are static ``int`` nodes."""

    x: Node
    lo: Node
    hi: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.x, self.lo, self.hi)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rope(Node):
    """Rotary embedding of the first ``rotated`` elements, halves paired (RoFormer, arXiv 2104.09864, eq. 34).

    With ``r = rotated`` and ``t = position * base ** (-2 d / r)`` for ``d < r / 2``:
    ``y[d] = x[d] cos t - x[d + r/2] sin t`` and ``y[d + r/2] = x[d + r/2] cos t + x[d] sin t``.
    """

    x: Node
    position: Node
    base: Node
    rotated: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.x, self.position, self.base, self.rotated)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MatVec(Node):
    """``y[e] = sum_d x[d] * matrix[d, e]``; ``matrix`` is a read with two open axes, d before e."""

    x: Node
    matrix: Read

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.x, self.matrix)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Pool(Node):
    """In the rank of a route: ``x`` reduced over a set that belongs to what ranks or is ranked.

    ``over="j"`` is the keys of a block, ``"i"`` its queries, ``"w"`` the windows that share keys with the block (a sum
    counts each by the keys shared over the stride), ``"g"`` the query heads of a key head, ``"h"`` all heads; the last
    two are sums. The ragged last block is reduced over the tokens it has. Vectors are reduced element by element.
    """

    op: OneOf["mean", "max", "min", "sum"]
    over: OneOf["i", "j", "w", "g", "h"]
    x: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.x,)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Window(Node):
    """The mean of ``x`` over the keys ``t * stride .. t * stride + length - 1`` of window ``t``; whole windows alone.

    In the rank of a route ``axis="w"``, and windows are beside the keys. In a clause (``axis="j"``) they take the
    place of the keys: ``j`` counts windows throughout the body. ``length`` and ``stride`` are static ``int`` nodes.
    """

    x: Node
    length: Node
    stride: Node
    axis: OneOf["j", "w"]

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.x, self.length, self.stride)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Bound(Node):
    """The running index of a :class:`Total`, from 0 to ``extent - 1``; ``level`` counts the totals around it."""

    level: int
    extent: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.extent,)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Total(Node):
    """``x`` summed over all values of ``index``; in the rank of a route alone."""

    x: Node
    index: Bound

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.x, self.index)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Cumsum(Node):
    """``sum_{t <= at} x(t)``, where ``x`` is a function of the key position ``j`` and ``at`` is ``i`` or ``j``."""

    x: Node
    at: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.x, self.at)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Solve(Node):
    """Row ``j`` of ``L^-1 x``, where ``L[i, j]`` is ``pair`` below and on the diagonal, and 0 above it."""

    pair: Node
    x: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.pair, self.x)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BranchOutput(Node):
    """The output of a named branch, or of the softmax over the keys of several (``merge``)."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class State(Node):
    """A row statistic or accumulator of a plan, by name. Made by the streaming analysis alone."""

    name: str
