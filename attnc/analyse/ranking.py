"""A route as kernels take it: blocks stand in for keys, and what is made of one side alone is made before.

The rank becomes an expression over pairs of a query (``row``, ``i``) and a block, whose number is ``j``. Dot products
are of one vector of each; pools over the keys of a block, and what is computed from them, are tensors of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal as OneOf

from attnc.ir.build import apply, dot, index, literal, read, size
from attnc.ir.nodes import (
    Apply,
    Bound,
    Dot,
    Index,
    Input,
    Kind,
    Literal,
    Node,
    Param,
    Pool,
    Read,
    Reduce,
    Size,
    Slice,
    Token,
    Total,
    Window,
)
from attnc.ir.program import Program
from attnc.ir.traverse import contains, postorder, rebuild, substitute
from attnc.plan import TokenMap

BLOCKS = size("blocks__")
"""How many blocks there are."""

CAUSAL = apply("le", index("j"), index("i"))
_HELD = 32
"""Blocks that a query may choose by rank."""
_TAKEN = 8
"""Blocks that it may take without."""


class NotRanked(Exception):
    """No kernel chooses like this, and why."""


@dataclass(frozen=True, slots=True)
class BlockPool:
    """``result[b, h or g, block]`` (with a width) is ``x`` reduced over the keys of each block; ``per`` as in a map."""

    result: Input
    op: OneOf["mean", "max", "min", "sum"]
    x: Node
    per: OneOf["H", "G"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """How each query chooses ``top`` blocks.

    Attributes:
        program: declares inputs, parameters and the key heads; the route is the only one of its body.
        block: keys of a block.
        causal: whether a query sees the blocks that begin at or before it; else it sees all.
        pools: of keys, first.
        maps: of queries (``row``, ``i``) and of blocks (``j``), in order.
        rank: over pairs.
        candidates: which visible blocks are ranked; ``None`` for all.
        always: what is taken first and counted: ``("self" | "first" | "last", how many)``.
        also: what is taken besides.
        top: how many are chosen, ``always`` included.
        most: how many there can be in all.
    """

    program: Program
    block: int
    causal: bool
    pools: tuple[BlockPool, ...]
    maps: tuple[TokenMap, ...]
    rank: Node
    candidates: Node | None
    always: tuple[tuple[str, int], ...]
    also: tuple[tuple[str, int], ...]
    top: int
    most: int


def ranking_of(program: Program) -> Ranking:
    """The route of a program that has one, its head widths set.

    Raises:
        NotRanked: kernels do not choose like this.
    """
    (route,) = program.body.routes
    rule = route.select
    if route.queries != "query":
        raise NotRanked("queries do not choose each for itself")
    if not isinstance(route.keys_block, Literal) or route.keys_block.value < 2:
        raise NotRanked("single keys are chosen")
    if program.body.mask is not CAUSAL and program.body.mask is not literal(True):
        raise NotRanked("the mask is another than causal")
    if route.rank is None or rule is None or rule.how != "top" or dict(rule.options).get("scope") in ("head", "heads"):
        raise NotRanked("blocks are not selected by `top` of each query")
    if not isinstance(rule.args[0], Literal) or rule.args[0].kind is not Kind.INT:
        raise NotRanked("how many are chosen is no constant")
    always, also = (tuple(map(_taken, items)) for items in (route.always, route.also))
    taken, top = sum(n for _, n in always), max(0, int(rule.args[0].value))
    if max(top, taken) > _HELD or taken > _TAKEN or sum(n for _, n in also) > _TAKEN:
        raise NotRanked(f"more than {_HELD} are chosen, or more than {_TAKEN} taken whatever their rank")
    making = _Making()
    rank = making.pair(route.rank)
    candidates = None if route.candidates is None else making.pair(route.candidates)
    held = max(top, taken)
    return Ranking(
        program, int(route.keys_block.value), program.body.mask is CAUSAL, tuple(making.pools), tuple(making.maps),
        rank, candidates, always, also, top, max(1, held + sum(n for _, n in also)),
    )  # fmt: skip


def refusal(program: Program) -> str | None:
    """Why the route of a program is not chosen by kernels; ``None`` if it is."""
    try:
        ranking_of(program)
    except NotRanked as reason:
        return str(reason)
    return None


def _taken(item: tuple[str, Node | None]) -> tuple[str, int]:
    name, node = item
    if name == "self":
        return name, 1
    if name == "where" or not isinstance(node, Literal):
        raise NotRanked("blocks are taken by a condition")
    return name, max(0, int(node.value))


@dataclass(slots=True)
class _Making:
    """What is made before, and what nodes became."""

    pools: list[BlockPool] = field(default_factory=list)
    maps: list[TokenMap] = field(default_factory=list)
    known: dict[Node, Node] = field(default_factory=dict)

    def pair(self, root: Node) -> Node:
        """An expression over queries and blocks."""
        for node in postorder(root, stop=self.known):
            if node not in self.known and not node.is_vector:
                self.known[node] = self._scalar(node)
        return self.known[root]

    def _scalar(self, node: Node) -> Node:
        match node:
            case Dot(a=a, b=b) if {_side(a), _side(b)} == {"query", "block"}:
                return dot(self._vector(a), self._vector(b))
            case Reduce(over="J" | "w"):
                raise NotRanked("ranks are compared with each other before the selection")
            case Pool(over="g" | "h" | "w" | "i") | Total() | Window() | Bound():
                raise NotRanked("ranks are summed over heads, windows or an axis of inputs")
            case Index(name="J"):
                return index("j")
            case Index(name="j"):
                raise NotRanked("the keys of a block are looked at beside their pools")
            case Literal() | Index() | Size() | Param():
                return node
            case Apply() | Read() if not node.is_vector:
                if any(child not in self.known for child in node.children if not child.is_vector):
                    raise NotRanked("a part of the rank is not of one kind")
                return rebuild(node, tuple(self.known[child] for child in node.children))
        return self._map(node)

    def _vector(self, node: Node) -> Node:
        """A vector that products take as it is: of the queries, or made before."""
        return node if _is_query(node) else self._map(node)

    def _map(self, node: Node) -> Node:
        """A number or vector of one side, made before."""
        if node not in self.known:
            side = _side(node)
            if side is None:
                raise NotRanked("a vector of queries meets one of blocks other than in a product")
            expression = self._pooled(node)
            if side == "query" and contains(expression, lambda x: isinstance(x, Pool)):
                raise NotRanked("queries are pooled")
            if isinstance(expression, Read) and side == "block" and expression.input.name.startswith("pool"):
                self.known[node] = expression
                return expression
            per: OneOf["H", "G"] = "H" if side == "query" or contains(expression, _by_head) else "G"
            result, at = _tensor(f"map{len(self.maps)}__", side, per, node.width)
            key = "query" if side == "query" else "key"
            self.maps.append(TokenMap(result, key, per, expression))  # type: ignore[arg-type]
            self.known[node] = read(result, at)
        return self.known[node]

    def _pooled(self, root: Node) -> Node:
        """``root`` with pools over keys as reads of what they made, and ``J`` as ``j``."""
        found: dict[Node, Node] = {index("J"): index("j")}
        for node in postorder(root, stop=[x for x in postorder(root) if isinstance(x, Pool)]):
            if isinstance(node, Pool):
                if node.over != "j":
                    raise NotRanked("ranks are summed over heads or windows, or queries are pooled")
                found[node] = self._pool(node)
            elif isinstance(node, Reduce | Total | Window) and getattr(node, "over", "J") != "d":
                raise NotRanked("ranks are compared with each other before the selection")
        return substitute(root, found)

    def _pool(self, node: Pool) -> Node:
        for one in self.pools:
            if one.op == node.op and one.x is node.x:
                return read(one.result, _tensor(one.result.name, "block", one.per, node.width)[1])
        if contains(node.x, lambda x: isinstance(x, Pool | Window | Total | Index) and getattr(x, "name", "I") == "I"):
            raise NotRanked("pools of pools")
        per: OneOf["H", "G"] = "H" if contains(node.x, _by_head) else "G"
        result, at = _tensor(f"pool{len(self.pools)}__", "block", per, node.width)
        self.pools.append(BlockPool(result, node.op, node.x, per))
        return read(result, at)


def _tensor(name: str, side: str, per: str, width: Node | None) -> tuple[Input, tuple[Node | None, ...]]:
    """A tensor of queries or blocks, and the indices at which it is read."""
    dims = (size("B"), size(per), size("M") if side == "query" else BLOCKS)
    at = (index("b"), index("h" if per == "H" else "g"), index("row" if side == "query" else "j"))
    if width is None:
        return Input(name, Kind.REAL, dims), at
    return Input(name, Kind.REAL, (*dims, width)), (*at, None)


def _side(node: Node) -> str | None:
    """Whether a value is of queries or of blocks; ``None`` if of both."""
    of_query = bool({"i", "I"} & node.axes)
    of_block = bool({"J", "j"} & node.axes)
    return None if of_query and of_block else "query" if of_query else "block"


def _is_query(node: Node) -> bool:
    return (isinstance(node, Token) and node.name == "q") or (isinstance(node, Slice) and _is_query(node.x))


def _by_head(node: Node) -> bool:
    return node is index("h")
