"""Choosing single keys by kernels, where a route can be: the others are chosen in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attnc.analyse.key_ranking import KeyRanking, key_ranking_of
from attnc.analyse.scalar import evaluate
from attnc.backends.protocol import Selector, Workload
from attnc.errors import TargetError
from attnc.ir.nodes import Input, Size
from attnc.ir.program import Program, Route
from attnc.ir.specialize import specialize
from attnc.routing.choice import Choice, Lists, Words, by_head
from attnc.routing.choose import choosers_of
from attnc.routing.dense import Call, Choosers
from attnc.routing.gathered import bound_of, is_by_key, longest, who_chooses
from attnc.routing.lower import Part, program_of
from attnc.runtime import KernelSource
from attnc.signature import size_value
from attnc.targets import target_of_device
from attnc.validate import DTYPES


@dataclass(slots=True)
class Selecting:
    """The kernels of the routes of one attention, made when they are first needed; see :data:`choose.Kernels`."""

    part: Part
    source: KernelSource
    made: dict[tuple[Any, ...], Selector | str] = field(default_factory=dict)
    rankings: dict[tuple[int, int, int], KeyRanking | str] = field(default_factory=dict)

    def __call__(self, call: Call, at: int, before: Sequence[Choice]) -> Choice | None:
        ranking = self.ranking(at, call.sizes["D"], call.sizes["E"])
        if isinstance(ranking, str):
            return None
        q, k = call.tokens.raw["q"], call.tokens.raw["k"]
        chosen = {
            source.name: words_of(choice, source, call)
            for source, choice in zip(self.part.chosen, before, strict=False)
            if source.name in {x.name for x in ranking.program.inputs}
        }
        inputs = [chosen[x.name] if x.name in chosen else call.inputs[x.name] for x in ranking.program.inputs]
        key = at, q.device, q.dtype, q.shape[3], call.sizes["E"], *(x.dtype for x in inputs)
        if key not in self.made:
            workload = Workload(DTYPES[q.dtype], tuple(DTYPES[x.dtype] for x in inputs), False)
            try:
                self.made[key] = self.source.selector(ranking, workload, target_of_device(q.device.type))
            except TargetError as error:
                self.made[key] = str(error)
        selector = self.made[key]
        if isinstance(selector, str):
            return None
        route = self.part.body.routes[at]
        most = longest(route, call.sizes)
        assert most is not None
        sizes: Mapping[str, int] = call.sizes
        heads = {"": 1, "G": sizes["G"], "H": sizes["H"]}[ranking.heads]
        shape = (sizes["B"], heads, sizes["M"])
        numbers = torch.full((*shape, most), -1, dtype=torch.int32, device=q.device)
        counts = torch.empty(shape, dtype=torch.int32, device=q.device)
        numbers_of_call = {x: call.params[x].item() for x in (one.name for one in ranking.program.parameters)}
        given = {**sizes, "count": int(evaluate(ranking.count, sizes))}
        selector.run(q.detach(), k.detach(), [x.detach() for x in inputs], list(numbers_of_call.values()), given,
                     numbers, counts)  # fmt: skip
        if ranking.heads == "G" and sizes["G"] == sizes["H"]:
            numbers, counts = numbers[:, call.groups], counts[:, call.groups]
        return Choice(Lists(numbers, counts), 1, sizes["N"], Choosers(0, sizes["M"]))

    def explain(self, at: int, d: int, e: int) -> str:
        """What makes the choice of route ``at``, in words."""
        ranking = self.ranking(at, d, e)
        if isinstance(ranking, str):
            return f"chosen in torch: {ranking}"
        return "chosen by kernels on GPUs: ranks of a stretch of queries, then the highest of each, exactly"

    def ranking(self, at: int, d: int, e: int) -> KeyRanking | str:
        """How route ``at`` ranks for heads of these widths, or why kernels do not choose for it."""
        if (at, d, e) not in self.rankings:
            self.rankings[at, d, e] = self._ranking(at, d, e)
        return self.rankings[at, d, e]

    def _ranking(self, at: int, d: int, e: int) -> KeyRanking | str:
        route = self.part.body.routes[at]
        if not is_by_key(route):
            return "blocks, or choices of several queries together"
        length = bound_of(route)
        if length is None or route.rank is None:
            return "a selection other than `top(n)` with n known from sizes"
        visible = self.part.visible[at]
        body = replace(self.part.body, mask=visible, routes=(route,))
        program: Program = specialize(program_of(self.part.whole, self.part.name, body, self.part.chosen[:at]), d, e)
        inner = program.body
        return key_ranking_of(program, inner.mask, inner.routes[0], length, who_chooses(self.part.body, at + 1))


def words_of(choice: Choice, source: Input, call: Call) -> Tensor:
    """The bits of a choice as the input that reads them."""
    shape = _heads(source, call.sizes)
    bits = by_head(choice.words, call) if shape[1] > 1 else choice.words[:, :1]
    return bits.expand(*shape, -1, -1).reshape([size_value(dim, call.sizes) for dim in source.dims])


def from_words(bits: Tensor, route: Route, source: Input, call: Call) -> Choice:
    """The inverse of :func:`words_of` for the choice of a route."""
    choosers = choosers_of(call, route)
    block = 0 if route.queries == "keep" else size_value(route.keys_block, call.sizes)
    blocks = -(-call.sizes["N"] // block) if block else 1
    held = Words(bits.view(*_heads(source, call.sizes), choosers.count(call.shift), bits.shape[-1]))
    return Choice(held, block, blocks, choosers)


def _heads(source: Input, sizes: Mapping[str, int]) -> list[int]:
    """Batch rows and heads of an input of choices, 1 for what it does not have."""
    names = {dim.name for dim in source.dims[:-1] if isinstance(dim, Size)}
    return [sizes[name] if name in names else 1 for name in "BH"]
