"""Ranks of single keys as kernels compute them: a sum over an extra axis of a function of one dot product."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.ir import build
from attnc.ir.build import apply
from attnc.ir.nodes import Apply, Bound, Dot, Index, Input, Kind, Literal, Node, Param, Read, Size, Token, Total
from attnc.ir.program import Program, Route
from attnc.ir.traverse import postorder, substitute

TOKENS = {"q": ("b", "h", "row"), "k": ("b", "g", "j"), "v": ("b", "g", "j")}


@dataclass(frozen=True, slots=True)
class Operand:
    """Vectors of a tensor: ``places`` says which index each dimension but the last is read at: one of ``b h g n``, or
    ``token`` for the row or the key.
    """

    tensor: str
    places: tuple[str, ...]
    width: int


@dataclass(frozen=True, slots=True)
class KeyRanking:
    """How the queries of a program choose single keys, one by one.

    The rank of a pair is ``final``, in which ``total`` stands for the sum over ``n < count`` of ``term``, and ``term``
    for a function of ``product``, the dot product of a vector of the query and one of the key (both may be ``None``).
    The ``longest`` highest ranks of the keys in ``visible`` are chosen. ``heads`` says who chooses: ``H``, ``G``, or
    nothing, where all heads choose together.
    """

    program: Program
    visible: Node
    final: Node
    total: Node | None
    term: Node
    count: Node
    product: Dot | None
    query: Operand | None
    key: Operand | None
    longest: Node
    heads: str


def key_ranking_of(program: Program, visible: Node, route: Route, longest: Node, heads: str) -> KeyRanking | str:
    """The ranking of a route of a program whose widths are set, or why it is not one.

    ``visible`` is the mask, earlier routes included; ``program`` declares the inputs of both.
    """
    assert route.rank is not None
    plain: dict[Node, Node] = {build.index("J"): build.index("j")}
    rank = substitute(route.rank, plain)
    if route.candidates is not None:
        visible = apply("and", visible, substitute(route.candidates, plain))
    for node in postorder(rank, visible):
        if (reason := _refused(node)) is not None:
            return reason
    if any(isinstance(node, Dot | Total) for node in postorder(visible)):
        return "candidates that depend on vectors"
    totals = [node for node in postorder(rank) if isinstance(node, Total)]
    if len(totals) > 1:
        return "several sums over extra axes"
    total: Node | None = totals[0] if totals else None
    count: Node = build.literal(1)
    term: Node = build.literal(0.0)
    if isinstance(total, Total):
        term, count = total.x, total.index.extent
    outside = [node for node in postorder(rank, stop=totals) if isinstance(node, Dot)]
    inside = [node for node in postorder(term) if isinstance(node, Dot)]
    if len(outside) + len(inside) > 1:
        return "several dot products"
    product = next(iter(outside + inside), None)
    if total is None and isinstance(product, Dot):
        total = term = product
    query = key = None
    if isinstance(product, Dot):
        sides = [_operand(node) for node in (product.a, product.b)]
        by_side = {side: one for one, side in (found for found in sides if found is not None)}
        if by_side.keys() != {"row", "j"}:
            return "a dot product of others than stored vectors of a query and a key"
        query, key = by_side["row"], by_side["j"]
        if query.width & (query.width - 1) or not 16 <= query.width <= 512:
            return "vectors whose width is no power of two from 16 to 512"
    return KeyRanking(program, visible, rank, total, term, count, product, query, key, longest, heads)


def _refused(node: Node) -> str | None:
    match node:
        case Literal() | Size() | Param() | Apply() | Dot() | Total() | Bound():
            return None
        case Index(name="b" | "h" | "g" | "row" | "i" | "j"):
            return None
        case Read() | Token():
            return None
        case _:
            return f"`{type(node).__name__.lower()}` in a rank"


def _operand(node: Node) -> tuple[Operand, str] | None:
    """A vector of a token as it is stored, and whose it is: ``row`` or ``j``."""
    match node:
        case Token(name=name, width=Literal(value=width)):
            *places, side = TOKENS[name]
            return Operand(name, (*places, "token"), int(width)), side
        case Read(input=Input(name=name, kind=Kind.REAL, dims=dims), indices=(*closed, None), width=Literal() as width):
            places = [_place(at, dim) for at, dim in zip(closed, dims, strict=False)]
            sides = {at.name for at in closed if isinstance(at, Index) and at.name in ("row", "j")}
            if "" in places or places.count("token") != 1 or len(sides) != 1:
                return None
            return Operand(name, tuple(places), int(width.value)), sides.pop()
    return None


_EXTENTS = {"b": "B", "h": "H", "g": "G", "row": "M", "j": "N"}


def _place(at: Node | None, dim: Node) -> str:
    """What an index runs over, if it runs over all of a dimension and never outside of it; else nothing."""
    match at:
        case Index(name=name) if name in _EXTENTS and dim is build.size(_EXTENTS[name]):
            return "token" if name in ("row", "j") else name
        case Bound(extent=extent) if extent is dim:
            return "n"
    return ""
