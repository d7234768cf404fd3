"""Expert choice: a head that keeps some queries, and perhaps some keys, attends among them as a small dense problem.

Rows and keys are gathered in order, the plain attention runs on them with their positions as inputs, and what it gives
is put back; the other rows are 0. The output clause is computed afterwards, for the rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnc.analyse.scalar import evaluate
from attnc.ir import build
from attnc.ir.build import apply
from attnc.ir.nodes import Index, Input, Kind, Literal, Node, Param, Read, Reduce, Size
from attnc.ir.program import Parameter, Program, Route
from attnc.ir.traverse import postorder, substitute
from attnc.routing.choice import Choice, by_head, unpack
from attnc.routing.dense import Call, Choosers, Dense
from attnc.routing.gathered import bound_of
from attnc.routing.lower import TOKENS, Part, program_of

if TYPE_CHECKING:
    from attnc.op import Op

ROWS, KEYS, COUNT = "rows__", "keys__", "count__"
"""The inputs that hold positions, and the parameter that says how many rows there are in all."""

NAME = ("",)


@dataclass(frozen=True, slots=True)
class Kept:
    """The operator among kept queries; ``output`` is the output clause, of the attention as a branch.

    ``queries`` is the place of the route that keeps queries, ``keys`` that of the one that chooses keys, if one does.
    """

    op: Op
    part: Part
    output: Node
    queries: int
    keys: int | None

    @classmethod
    def of(cls, part: Part, make: Callable[[Program], Op]) -> Kept | None:
        """``None`` where a head does not keep a number of queries that is known from sizes, or where what is read
        differs by row or key, so that it would have to be gathered too.
        """
        body = part.body
        queries = [at for at, route in enumerate(body.routes) if route.queries == "keep"]
        keys = [at for at, route in enumerate(body.routes) if route.queries != "keep"]
        if len(queries) != 1 or bound_of(body.routes[queries[0]]) is None:
            return None
        if len(keys) > 1 or not all(_is_of_head(body.routes[at]) for at in keys):
            return None
        attended = build.reduce_keys("sum", apply("mul", body.weight, body.value))
        output = substitute(body.output, {attended: build.branch_output(NAME, attended.width or build.size("E"))})
        inside = [body.mask, body.weight, body.value]
        if any(isinstance(node, Reduce) and node.over == "j" for node in postorder(output)):
            return None
        if any(isinstance(node, Read) and {"i", "j"} & node.axes for node in postorder(*inside)):
            return None
        plain = replace(body, output=attended, routes=(), mask=body.mask)
        small = _with_positions(program_of(part.whole, f"{part.name}kept", plain, ()), bool(keys))
        return None if small is None else cls(make(small), part, output, queries[0], keys[0] if keys else None)

    def run(
        self, tokens: Sequence[Tensor], choices: Sequence[Choice], call: Call, given: Mapping[str, Any], lse: bool
    ) -> Any:
        """The output ``[B, H, M, E]``, and the log-sum-exp if ``lse``."""
        q, k, v = tokens
        sizes = call.sizes
        kept = unpack(by_head(choices[self.queries].words, call))[..., 0].expand(*(sizes[name] for name in "BHM"))
        rows = _first(kept, self._count(self.queries, call, "M"))
        arguments: dict[str, Any] = {TOKENS: sizes["N"], COUNT: sizes["M"], ROWS: rows.int()}
        k, v = k[:, call.groups], v[:, call.groups]
        if self.keys is not None:
            chosen = unpack(by_head(choices[self.keys].words, call))[:, :, 0, : sizes["N"]].expand(
                sizes["B"], sizes["H"], -1
            )
            keys = _first(chosen, self._count(self.keys, call, "N"))
            there = chosen.gather(-1, keys)
            arguments[KEYS] = torch.where(there, keys, torch.full_like(keys, -1)).int()
            k, v = _at(k, keys), _at(v, keys)
        arguments |= {name: given[name] for name in self.op.arguments if name not in arguments}
        arguments = {name: arguments[name] for name in self.op.arguments}
        found = self.op(_at(q, rows), k, v, return_lse=lse, **arguments)
        attended, sums = found if lse else (found, None)
        place = rows[..., None].expand(-1, -1, -1, attended.shape[-1])
        whole = attended.new_zeros(*q.shape[:3], attended.shape[-1]).scatter(2, place, attended)
        dense = Dense(call, Choosers(0, sizes["M"]), branches={NAME: whole})
        out = dense.at(self.output).squeeze(3).expand(*q.shape[:3], -1)
        sees = kept
        if sums is not None:
            lowest = sums.new_full(q.shape[:3], float("-inf"))
            every = lowest.scatter(2, rows, sums)
            sees = every > float("-inf")
        result = torch.where(sees[..., None], out, torch.zeros_like(out)).to(q.dtype)
        return (result, every) if sums is not None else result

    def _count(self, at: int, call: Call, most: str) -> int:
        length = bound_of(self.part.body.routes[at])
        assert length is not None
        return max(0, min(int(evaluate(length, call.sizes)), call.sizes[most]))


def _is_of_head(route: Route) -> bool:
    """Whether all rows of a head choose single keys together, a number of them that is known from sizes."""
    by_key = isinstance(route.keys_block, Literal) and route.keys_block.value == 1
    return route.queries == "head" and by_key and bound_of(route) is not None


def _with_positions(program: Program, keys: bool) -> Program | None:
    """A program of gathered rows, and keys if ``keys``: positions are read, sizes are passed."""
    head = (build.size("B"), build.size("H"))
    at = (build.index("b"), build.index("h"))
    row = build.read(Input(ROWS, Kind.INT, (*head, build.size("M"))), (*at, build.index("row")))
    all_keys, all_rows = build.param(TOKENS, Kind.INT), build.param(COUNT, Kind.INT)
    position = apply("add", row, apply("sub", all_keys, all_rows))
    became: dict[Node, Node] = {build.index("row"): row, build.index("i"): position}
    became |= {build.size("N"): all_keys, build.size("M"): all_rows}
    body = program.body
    if keys:
        key = build.read(Input(KEYS, Kind.INT, (*head, build.size("N"))), (*at, build.index("j")))
        became[build.index("j")] = key
    body = body.map(lambda node: substitute(node, became))
    if keys:
        body = replace(body, mask=apply("and", body.mask, apply("ge", became[build.index("j")], build.literal(0))))
    nodes = list(postorder(*(node for _, node in body.roots())))
    read = {node.input for node in nodes if isinstance(node, Read)}
    if any(
        isinstance(node, Size) and node.name in "MN"
        for x in program.inputs
        for dim in x.dims
        for node in postorder(dim)
    ):
        return None
    if program.space or any(isinstance(node, Index) and node.name == "I" for node in nodes):
        return None
    positions = sorted((x for x in read if x.name in (ROWS, KEYS)), key=lambda x: x.name)
    used = {node.name for node in nodes if isinstance(node, Param)}
    sizes = tuple(Parameter(name, Kind.INT, None) for name in (TOKENS, COUNT) if name in used)
    return replace(
        program,
        inputs=(*program.inputs, *positions),
        parameters=(*program.parameters, *sizes),
        body=body,
        group=build.index("h"),
    )


def _first(chosen: Tensor, count: int) -> Tensor:
    """The places of what is true, ascending, ``[.., count]``; others behind them."""
    return chosen.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :count]


def _at(x: Tensor, places: Tensor) -> Tensor:
    """``x[b, h, places[b, h]]``."""
    return x.gather(2, places[..., None].expand(-1, -1, -1, x.shape[-1]))
