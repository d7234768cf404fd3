"""Builders of nodes: the one place that infers kinds, axes and widths, and refuses what does not fit.

Every builder raises :class:`IllTyped` with a sentence a spec's author can read; the checker gives it a location.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from attnc.grammar.source import Span
from attnc.ir.nodes import (
    NO_AXES,
    ROW_AXES,
    Apply,
    Axes,
    Bound,
    BranchOutput,
    Cumsum,
    Dot,
    Index,
    Input,
    Kind,
    Literal,
    MatVec,
    Node,
    Param,
    Pool,
    Read,
    Reduce,
    Rope,
    Size,
    Slice,
    Solve,
    State,
    Token,
    Total,
    Window,
)
from attnc.ir.ops import OPS, Rule

INDEX_AXES: dict[str, Axes] = {
    "b": frozenset("b"),
    "h": frozenset("h"),
    "g": frozenset("h"),
    "row": frozenset("i"),
    "i": frozenset("i"),
    "j": frozenset("j"),
    "I": frozenset("I"),
    "J": frozenset("J"),
}


class IllTyped(ValueError):
    """The parts of an expression do not fit together.

    ``hint`` says how to mend it, ``operand`` the number of the operand to blame, ``node`` which expression a pass
    could not make again, and ``span`` where that stands, as far as they are known.
    """

    def __init__(self, message: str, hint: str | None = None, operand: int | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.operand = operand
        self.node: Node | None = None
        self.span: Span | None = None


def literal(value: int | float | bool) -> Literal:
    """A number or truth value; a number must be finite."""
    if isinstance(value, bool):
        return Literal(Kind.BOOL, NO_AXES, None, value)
    if isinstance(value, int):
        return Literal(Kind.INT, NO_AXES, None, value)
    if not math.isfinite(value):
        raise IllTyped(f"{value} is not a finite number")
    return Literal(Kind.REAL, NO_AXES, None, value + 0.0)


def size(name: str) -> Size:
    return Size(Kind.INT, NO_AXES, None, name)


def index(name: str) -> Index:
    return Index(Kind.INT, INDEX_AXES[name], None, name)


def param(name: str, kind: Kind) -> Param:
    return Param(kind, NO_AXES, None, name)


def token(name: str, width: Node | None = None) -> Token:
    """The raw vector of ``q``, ``k`` or ``v``; its width is ``D`` or ``E`` where it is not known yet."""
    axes = ROW_AXES if name in ("q", "$k") else frozenset("bhj")
    width = width or size("E" if name == "v" else "D")
    return Token(Kind.REAL, axes, width, name)  # type: ignore[arg-type]


def state(name: str, width: Node | None = None) -> State:
    return State(Kind.REAL, ROW_AXES, width, name)


def branch_output(names: tuple[str, ...], width: Node) -> BranchOutput:
    return BranchOutput(Kind.REAL, ROW_AXES, width, names)


def axes_of(nodes: Iterable[Node]) -> Axes:
    """The union of the axes of some nodes."""
    return NO_AXES.union(*(node.axes for node in nodes))


def to_real(x: Node) -> Node:
    """``x`` as a real; an ``int`` is converted, a ``bool`` refused."""
    if x.kind is Kind.REAL:
        return x
    if x.kind is Kind.BOOL:
        raise IllTyped("expected a number, found a truth value", "write `1 if ... else 0`")
    if isinstance(x, Literal):
        return literal(float(x.value))
    return Apply(Kind.REAL, x.axes, x.width, "real", (x,))


def _reals(args: Iterable[Node], first: int = 0) -> tuple[Node, ...]:
    """The arguments as reals; ``first`` is the number of the first among the operands."""
    converted = []
    for position, arg in enumerate(args, first):
        if arg.kind is Kind.BOOL:
            raise IllTyped("expected a number, found a truth value", "write `1 if ... else 0`", position)
        converted.append(to_real(arg))
    return tuple(converted)


def _common(args: Iterable[Node], first: int = 0) -> tuple[Node, ...]:
    """The arguments, ``int`` ones converted if another is real."""
    args = tuple(args)
    kinds = {arg.kind for arg in args}
    return args if len(kinds) == 1 and Kind.REAL not in kinds else _reals(args, first)


def _require(args: Iterable[Node], kind: Kind, what: str, hint: str | None = None) -> None:
    for position, arg in enumerate(args):
        if arg.kind is not kind:
            raise IllTyped(f"{what} takes {kind} operands, found {arg.kind}", hint, position)


def same_width(args: Iterable[Node]) -> Node | None:
    """The width that the vectors among ``args`` share; ``None`` if there is no vector.

    Widths that are not both known yet are taken to agree; they are compared again once D and E are.
    """
    found: Node | None = None
    for arg in args:
        if arg.width is None or arg.width is found:
            continue
        if found is not None and isinstance(found, Literal) and isinstance(arg.width, Literal):
            raise IllTyped(f"vectors of width {found.value} and {arg.width.value} do not go together")
        if found is None or isinstance(found, Size | Apply):
            found = arg.width if found is None or isinstance(arg.width, Literal) else found
    return found


def apply(name: str, *operands: Node) -> Node:
    """The operation ``name`` of :data:`~attnc.ir.ops.OPS` on ``operands``."""
    op = OPS[name]
    args: tuple[Node, ...] = operands
    if len(args) != op.arity:
        raise IllTyped(f"`{name}` takes {op.arity} arguments, found {len(args)}")
    label = f"`{op.symbol or name}`"
    kind: Kind
    match op.rule:
        case Rule.ARITHMETIC:
            args = _common(args)
            if args[0].kind is Kind.BOOL:
                raise IllTyped(f"{label} takes numbers, found truth values", "write `1 if ... else 0`", 0)
            kind = args[0].kind
        case Rule.TO_REAL:
            return to_real(args[0])
        case Rule.REAL:
            args = tuple(map(to_real, args))
            kind = Kind.REAL
        case Rule.INTEGER:
            _require(args, Kind.INT, label, "use `floor(...)` to make an int of a real")
            kind = Kind.INT
        case Rule.ROUND:
            args = _reals(args)
            kind = Kind.INT
        case Rule.COMPARE:
            args = _common(args)
            kind = Kind.BOOL
        case Rule.LOGIC:
            _require(args, Kind.BOOL, label, "compare it with something to make a truth value")
            kind = Kind.BOOL
        case Rule.CHOOSE:
            _require(args[:1], Kind.BOOL, "the condition of `if`")
            args = (args[0], *_common(args[1:], 1))
            kind = args[1].kind
    return Apply(kind, axes_of(args), same_width(args), name, args)


def read(source: Input, indices: tuple[Node | None, ...]) -> Read:
    """An element of ``source``, or a vector where one index is open, or a matrix where two are."""
    if len(indices) != len(source.dims):
        raise IllTyped(f"`{source.name}` has {len(source.dims)} dimensions, found {len(indices)} indices")
    for at in indices:
        if at is not None and (at.kind is not Kind.INT or at.is_vector):
            raise IllTyped(f"an index of `{source.name}` must be an int", "use `floor(...)` to make one")
    opened = [dim for dim, at in zip(source.dims, indices, strict=True) if at is None]
    axes = axes_of(at for at in indices if at is not None)
    return Read(source.kind, axes, opened[-1] if opened else None, source, indices)


def dot(a: Node, b: Node) -> Node:
    """``sum_d a[d] b[d]``."""
    _vectors("dot", a, b)
    a, b = to_real(a), to_real(b)
    same_width((a, b))
    return Dot(Kind.REAL, a.axes | b.axes, None, a, b)


def _vectors(what: str, *xs: Node) -> None:
    for position, x in enumerate(xs):
        if not x.is_vector:
            raise IllTyped(f"`{what}` takes vectors over d, found a scalar", operand=position)


def reduce_keys(op: str, x: Node) -> Node:
    """``rowsum`` or ``rowmax``: over the visible keys, so the result may vary with every row."""
    return Reduce(Kind.REAL, ROW_AXES, x.width, op, "j", to_real(x))  # type: ignore[arg-type]


def reduce_width(op: str, x: Node) -> Node:
    """The sum or maximum of the elements of a vector."""
    _vectors(op, x)
    return Reduce(Kind.REAL, x.axes, None, op, "d", to_real(x))  # type: ignore[arg-type]


def reduce_candidates(op: str, x: Node) -> Node:
    """``rowsum`` or ``rowmax`` in the rank of a route: over the candidate blocks, or the visible windows."""
    over = "w" if "w" in x.axes else "J"
    return Reduce(Kind.REAL, x.axes - {"J", "j", "w"}, x.width, op, over, to_real(x))  # type: ignore[arg-type]


POOLED: dict[str, Axes] = {"i": frozenset("I"), "j": frozenset("J"), "w": frozenset("J"), "h": NO_AXES}
"""What each axis that a :class:`Pool` reduces over becomes."""


def pool(op: str, over: str, x: Node) -> Node:
    """``x`` reduced over the tokens or windows of a block, or summed over the heads of a group or all."""
    axes = x.axes if over == "g" else (x.axes - {over}) | POOLED[over]
    return Pool(Kind.REAL, axes, x.width, op, over, to_real(x))  # type: ignore[arg-type]


def window(axis: str, x: Node, length: Node, stride: Node) -> Window:
    """The mean of a key expression over the keys of each window."""
    axes = x.axes if axis == "j" else (x.axes - {"j"}) | {"w"}
    return Window(Kind.REAL, axes, x.width, to_real(x), length, stride, axis)  # type: ignore[arg-type]


def bound(level: int, extent: Node) -> Bound:
    """The running index of a :func:`total`, the ``level``-th around its place."""
    return Bound(Kind.INT, frozenset({f"n{level}"}), None, level, extent)


def total(x: Node, index: Bound) -> Node:
    """``x`` summed over all values of ``index``."""
    return Total(Kind.REAL, x.axes - index.axes, x.width, to_real(x), index)


def slice_(x: Node, lo: Node, hi: Node) -> Node:
    """Elements ``lo`` to ``hi`` of a vector."""
    _vectors("[lo:hi]", x)
    known = [bound.value if isinstance(bound, Literal) else None for bound in (lo, hi, x.width)]
    first, last, end = known
    outside = first is not None and first < 0
    outside |= first is not None and last is not None and last <= first
    outside |= end is not None and any(bound is not None and bound > end for bound in (first, last))
    if outside:
        shown = ["..." if bound is None else str(bound) for bound in known]
        of_width = "" if end is None else f" of width {end}"
        raise IllTyped(f"[{shown[0]}:{shown[1]}] is not a part of a vector{of_width}")
    width = hi if first == 0 else apply("sub", hi, lo)
    if first is not None and last is not None:
        width = literal(int(last) - int(first))
    return Slice(x.kind, x.axes, width, x, lo, hi)


def rope(x: Node, position: Node, base: Node, rotated: Node) -> Node:
    """Rotary embedding of the first ``rotated`` elements of ``x``."""
    _vectors("rope", x)
    if isinstance(rotated, Literal) and int(rotated.value) % 2:
        raise IllTyped(f"`rope` rotates pairs, so its width must be even, found {rotated.value}")
    if isinstance(rotated, Literal) and isinstance(x.width, Literal) and not 0 <= rotated.value <= x.width.value:
        raise IllTyped(f"`rope` cannot rotate {rotated.value} elements of a vector of width {x.width.value}")
    x, position, base = to_real(x), to_real(position), to_real(base)
    return Rope(Kind.REAL, axes_of((x, position, base)), x.width, x, position, base, rotated)


def matvec(x: Node, matrix: Read) -> Node:
    """``x`` times a matrix read with two open axes."""
    _vectors("matmul", x)
    x = to_real(x)
    if matrix.kind is not Kind.REAL:
        raise IllTyped(f"`matmul` takes a real matrix, found {matrix.kind}")
    if sum(at is None for at in matrix.indices) != 2:
        raise IllTyped("`matmul` takes a read with two open axes, as in `w[h, :, :]`")
    rows = next(dim for dim, at in zip(matrix.input.dims, matrix.indices, strict=True) if at is None)
    if isinstance(rows, Literal) and isinstance(x.width, Literal) and rows is not x.width:
        raise IllTyped(f"a vector of width {x.width.value} does not go with a matrix of {rows.value} rows")
    return MatVec(Kind.REAL, x.axes | matrix.axes, matrix.width, x, matrix)


def cumsum(x: Node, at: Node) -> Node:
    """The running sum of ``x`` over key positions up to and including ``at``."""
    return Cumsum(Kind.REAL, (x.axes - {"j"}) | at.axes, x.width, to_real(x), at)


def solve(pair: Node, x: Node) -> Node:
    """``L^-1 x`` for the lower triangle of ``pair``."""
    _vectors("solve", x)
    pair, x = to_real(pair), to_real(x)
    return Solve(Kind.REAL, x.axes, x.width, pair, x)
