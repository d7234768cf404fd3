"""Token-only vector work, done once a token before any pass instead of once a pair.

A *token map* holds whatever vector expression varies over ``b h i`` or ``b h j`` alone and is more than the raw row of
q, k or v (rope, norms with a gain, projections), and whatever scalar of one side is computed from vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal as OneOf

from attnc.analyse.algebra import times
from attnc.ir.build import apply, dot, index, read, size
from attnc.ir.nodes import Apply, Cumsum, Dot, Input, Kind, Node, Read, Slice, State, Token
from attnc.ir.traverse import contains, postorder, rewrite, substitute
from attnc.plan import Accumulator, Pass, Plan, Statistic, TokenMap


def is_plain(node: Node) -> bool:
    """Whether ``node`` is the raw row of a token or a part of it, which kernels load as it is."""
    return isinstance(node, Token) or (isinstance(node, Slice) and isinstance(node.x, Token))


def pull_scalars(root: Node, plain: Callable[[Node], bool] = is_plain) -> Node:
    """``dot(x * c, y)`` as ``dot(x, y) * c``, where ``x`` is then ``plain``: the raw row of a token or a part of it.

    So norms without a gain and temperatures cost one number a token, not a vector.
    """
    return rewrite(root, lambda node: _pulled(node, plain) if isinstance(node, Dot) else node)


def hoist(plan: Plan) -> Plan:
    """The plan with its token-only work in token maps, and query before key in every dot product."""
    program = plan.program
    declared = {source.name for source in program.inputs} | {parameter.name for parameter in program.parameters}
    hoister = Hoister(declared | set(program.extents))
    passes = tuple(
        Pass(
            tuple(
                Statistic(s.name, s.op, hoister.hoist(s.term), hoister.hoist_shift(s.shift)) for s in step.statistics
            ),
            tuple(
                Accumulator(a.name, hoister.hoist(a.term), hoister.hoist(a.value), hoister.hoist_shift(a.shift))
                for a in step.accumulators
            ),
        )
        for step in plan.passes
    )
    return replace(
        plan,
        mask=hoister.hoist(plan.mask),
        passes=passes,
        output=hoister.hoist(plan.output, epilogue=True),
        lse=hoister.hoist_shift(plan.lse),
        tokens=tuple(hoister.maps.values()),
    )


def _pulled(node: Dot, plain: Callable[[Node], bool]) -> Node:
    (a, above_a, below_a), (b, above_b, below_b) = _peel(node.a), _peel(node.b)
    a, above_a, below_a = (a, above_a, below_a) if plain(a) else (node.a, [], [])
    b, above_b, below_b = (b, above_b, below_b) if plain(b) else (node.b, [], [])
    result = dot(a, b)
    for factor in above_a + above_b:
        result = times(result, factor)
    for divisor in below_a + below_b:
        result = apply("div", result, divisor)
    return result


def _peel(x: Node) -> tuple[Node, list[Node], list[Node]]:
    """A vector without its scalar factors and divisors."""
    above: list[Node] = []
    below: list[Node] = []
    while True:
        match x:
            case Apply(op="mul", args=(a, b)) if not a.is_vector:
                above.append(a)
                x = b
            case Apply(op="mul", args=(a, b)) if not b.is_vector:
                above.append(b)
                x = a
            case Apply(op="div", args=(a, b)) if a.is_vector and not b.is_vector:
                below.append(b)
                x = a
            case _:
                return x, above, below


@dataclass(slots=True)
class Hoister:
    """Token maps in the making. ``taken`` are names they must not have; ``plain`` vectors are read where they lie."""

    taken: set[str]
    plain: Callable[[Node], bool] = is_plain
    maps: dict[Node, TokenMap] = field(default_factory=dict)

    def hoist_shift(self, row: Node | None) -> Node | None:
        return None if row is None else self.hoist(row)

    def hoist(self, root: Node, epilogue: bool = False) -> Node:
        """``root`` with reads of token maps in place of what they hold.

        In the epilogue the raw row of a query is read from a map as well, so that its lanes are those of the output.
        """
        stateful: dict[Node, bool] = {}
        vectorial: dict[Node, bool] = {}
        for node in postorder(root):
            stateful[node] = isinstance(node, State) or any(stateful[child] for child in node.children)
            vectorial[node] = (
                node.is_vector or isinstance(node, Cumsum) or any(vectorial[child] for child in node.children)
            )
        found: dict[Node, Node] = {}
        stack, seen = [root], set[Node]()
        while stack:
            node = stack.pop()
            if node in seen or not vectorial[node]:
                continue
            seen.add(node)
            if not stateful[node] and not {"i", "j"} <= node.axes and self._deserves_map(node, epilogue):
                found[node] = self._read(node)
            else:
                stack.extend(reversed(node.children))
        return rewrite(substitute(root, found), _query_first)

    def _read(self, node: Node) -> Node:
        side: OneOf["query", "key"] = "key" if "j" in node.axes else "query"
        token_map = self.maps.get(node)
        if token_map is None:
            token_map = self.maps[node] = self._declare(node, side)
        head = index("h" if token_map.per == "H" else "g")
        indices = (index("b"), head, index("row" if side == "query" else "j"))
        return read(token_map.result, (*indices, None) if node.is_vector else indices)

    def _declare(self, node: Node, side: OneOf["query", "key"]) -> TokenMap:
        per: OneOf["H", "G"] = "H" if side == "query" or contains(node, lambda part: part is index("h")) else "G"
        dims = (size("B"), size(per), size("M" if side == "query" else "N"))
        stem, number = f"{'q' if side == 'query' else 'k'}_map", 0
        while f"{stem}{number}" in self.taken:
            number += 1
        self.taken.add(f"{stem}{number}")
        width = () if node.width is None else (node.width,)
        return TokenMap(Input(f"{stem}{number}", Kind.REAL, (*dims, *width)), side, per, node)

    def _deserves_map(self, node: Node, epilogue: bool) -> bool:
        if node.kind is not Kind.REAL or (isinstance(node, Read) and node.indices.count(None) == 2):
            return False
        if not node.is_vector:
            return True
        if not epilogue:
            return not self.plain(node)
        return contains(node, lambda part: part.is_vector and not isinstance(part, Read | Apply))


def _query_first(node: Node) -> Node:
    match node:
        case Dot(a=a, b=b) if "j" in a.axes and "j" not in b.axes:
            return dot(b, a)
        case _:
            return node
