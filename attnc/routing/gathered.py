"""Attention over keys that each query chose one by one: the lists are walked, instead of all keys with a bit each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnc.analyse.scalar import evaluate
from attnc.ir.nodes import Apply, Index, Kind, Literal, Node, Pool, Size, Token
from attnc.ir.program import Body, Program, Route
from attnc.ir.traverse import postorder
from attnc.routing.choice import Choice, Lists
from attnc.routing.dense import Call, Choosers
from attnc.routing.lower import COUNTS, NUMBERS, with_lists

if TYPE_CHECKING:
    from attnc.op import Op

TILE = 16
"""Rows of the smallest tile: a list that fewer heads share costs as much."""

COST = 4.0
"""How many pairs of a dense walk a gathered pair of a full tile costs."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """The operator of one attention over the lists of its last route. ``heads`` says who has one: ``H``, ``G``, or
    nothing where all heads share it.
    """

    op: Op
    route: Route
    heads: str

    @classmethod
    def of(cls, program: Program, body: Body, make: Callable[[Program], Op]) -> Gathered | None:
        """``None`` where not every query has a list of keys, no longer than what is known without looking at data.

        ``program`` is the plain one, without choices.
        """
        if not body.routes or not is_by_key(body.routes[-1]) or bound_of(body.routes[-1]) is None:
            return None
        heads = who_chooses(body, len(body.routes))
        return cls(make(with_lists(program, heads)), body.routes[-1], heads)

    def pays(self, call: Call) -> bool:
        """Whether the lists are so short that gathering costs less than visiting every visible key."""
        most = longest(self.route, call.sizes)
        assert most is not None
        shared = call.sizes["H"] // max(1, call.sizes["G"]) if self.heads != "H" else 1
        return most * COST * max(1.0, TILE / max(1, shared)) < call.sizes["N"] / 2

    def arguments(self, choice: Choice, call: Call) -> dict[str, Tensor]:
        """The lists of a choice as inputs of :attr:`op`."""
        most = longest(self.route, call.sizes)
        assert most is not None
        lists = choice.lists(most)
        numbers, counts = lists.numbers, lists.counts
        heads = {"": 1, "G": call.sizes["G"], "H": call.sizes["H"]}[self.heads]
        if self.heads == "G" and numbers.shape[1] == call.sizes["H"]:
            first = (call.groups == torch.arange(heads, device=call.device)[:, None]).int().argmax(1)
            numbers, counts = numbers[:, first], counts[:, first]
        numbers = numbers.expand(call.sizes["B"], heads, -1, -1)
        return {NUMBERS: numbers, COUNTS: counts.expand(call.sizes["B"], heads, -1)}

    def shapes(self, sizes: Mapping[str, int]) -> list[list[int]]:
        """The shapes of :meth:`arguments`."""
        most = longest(self.route, sizes)
        assert most is not None
        heads = {"": 1, "G": sizes["G"], "H": sizes["H"]}[self.heads]
        return [[sizes["B"], heads, sizes["M"], most], [sizes["B"], heads, sizes["M"]]]

    def choice(self, numbers: Tensor, counts: Tensor, call: Call) -> Choice:
        """The choice that :meth:`arguments` came from."""
        if self.heads == "G" and call.sizes["G"] == call.sizes["H"]:
            numbers, counts = numbers[:, call.groups], counts[:, call.groups]
        return Choice(Lists(numbers, counts), 1, call.sizes["N"], Choosers(0, call.sizes["M"]))

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, lists: Mapping[str, Tensor], given: Mapping[str, Any], lse: bool
    ) -> Any:
        """The output ``[B, H, M, E]``, and the log-sum-exp if ``lse``."""
        rest = {name: given[name] for name in self.op.arguments if name not in lists}
        return self.op(q, k, v, return_lse=lse, **lists, **rest)


def is_by_key(route: Route) -> bool:
    """Whether each query chooses single keys."""
    return route.queries == "query" and isinstance(route.keys_block, Literal) and route.keys_block.value == 1


def longest(route: Route, sizes: Mapping[str, int]) -> int | None:
    """The length of the longest list that a route can choose; ``None`` where it depends on data."""
    length = bound_of(route)
    if length is None:
        return None
    blocks = -(-sizes["N"] // int(evaluate(route.keys_block, sizes)))
    return max(0, min(int(evaluate(length, sizes)), blocks))


def bound_of(route: Route) -> Node | None:
    """The bound as an expression of sizes."""
    rule = route.select
    if rule is None or route.always or route.also:
        return None
    if rule.how == "given":
        return rule.args[0].width
    (n,), scope = rule.args, dict(rule.options).get("scope", "chooser")
    if rule.how != "top" or n.kind is not Kind.INT or scope != "chooser":
        return None
    return n if all(isinstance(x, Literal | Apply) or _is_size(x) for x in postorder(n)) else None


def _is_size(node: Node) -> bool:
    return isinstance(node, Size) and node.name in "BHGMNDE"


def who_chooses(body: Body, routes: int) -> str:
    """Whose choices differ, by the expressions of the mask and of the first ``routes`` routes: ``H``, ``G`` or none."""
    roots = [body.mask, *(root for route in body.routes[:routes] for root in route.roots())]
    if not any("h" in root.axes for root in roots):
        return ""
    stop = {x for x in postorder(*roots) if isinstance(x, Pool) and x.over in "gh"}
    by_head = any(
        (isinstance(x, Index) and x.name == "h") or (isinstance(x, Token) and x.name == "q")
        for x in postorder(*roots, stop=stop)
        if x not in stop
    )
    return "H" if by_head else "G"
