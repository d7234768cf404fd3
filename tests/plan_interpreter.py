"""Runs a plan as a kernel would: the keys in tiles of any sizes and order, sums rescaled as running maxima grow."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from strategies import extent
from torch import Tensor

from attnc.ir.nodes import (
    Apply,
    Dot,
    Index,
    Literal,
    MatVec,
    Node,
    Param,
    Read,
    Reduce,
    Rope,
    Size,
    Slice,
    State,
    Token,
)
from attnc.ir.traverse import postorder
from attnc.operations import OPERATIONS, rope
from attnc.plan import Plan, TokenMap

LOWEST = -1e30
"""Where a running maximum starts: finite, so that no difference of two of them is NaN."""


@dataclass
class Values:
    """What leaves are, broadcast over ``[B, H, M, keys]`` (and the width, last, for vectors)."""

    sizes: Mapping[str, int]
    tokens: Mapping[str, Tensor]
    inputs: dict[str, Tensor]
    params: Mapping[str, float]
    index: dict[str, Tensor]
    states: dict[str, Tensor] = field(default_factory=dict)

    def of(self, root: Node) -> Tensor:
        found: dict[Node, Tensor] = {}
        for node in postorder(root):
            found[node] = self._of(node, [found[child] for child in node.children])
        return found[root]

    def _of(self, node: Node, args: list[Tensor]) -> Tensor:
        match node:
            case Literal(value=value):
                return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
            case Size(name=name):
                return torch.tensor(self.sizes[name])
            case Index(name=name):
                return self.index[name]
            case Param(name=name):
                return torch.tensor(self.params[name])
            case State(name=name):
                return self.states[name]
            case Token(name=name):
                head, at = ("h", "row") if name == "q" else ("g", "j")
                return self._gather(self.tokens[name], [self.index["b"], self.index[head], self.index[at]])
            case Read(input=source, indices=indices):
                given = iter(args)
                return self._read(self.inputs[source.name], [None if at is None else next(given) for at in indices])
            case Apply(op="where"):
                condition, *rest = _lanes(node, args)
                return torch.where(condition, *torch.broadcast_tensors(*rest))
            case Apply(op="real"):
                return args[0].double()
            case Apply(op=op):
                return OPERATIONS[op](*_lanes(node, args))
            case Dot():
                return (args[0] * args[1]).sum(-1)
            case Reduce(op="sum", over="d"):
                return args[0].sum(-1)
            case Reduce(op="max", over="d"):
                return args[0].amax(-1)
            case Slice():
                return args[0][..., int(args[1]) : int(args[2])]
            case Rope():
                return rope(args[0], args[1], args[2], int(args[3]))
            case MatVec():
                return (args[0][..., :, None] * args[1]).sum(-2)
        raise AssertionError(f"no value of {node}")

    def _read(self, source: Tensor, indices: list[Tensor | None]) -> Tensor:
        opened = [axis for axis, at in enumerate(indices) if at is None]
        source = source.movedim(opened, list(range(-len(opened), 0))) if opened else source
        return self._gather(source, [at for at in indices if at is not None])

    @staticmethod
    def _gather(source: Tensor, indices: list[Tensor]) -> Tensor:
        inside = [at.clamp(0, max(0, extent - 1)) for at, extent in zip(indices, source.shape, strict=False)]
        return source[tuple(torch.broadcast_tensors(*inside))]


def _lanes(node: Node, args: list[Tensor]) -> list[Tensor]:
    """Scalars among vectors get an axis for the width."""
    if not node.is_vector:
        return args
    return [arg if child.is_vector else arg[..., None] for child, arg in zip(node.children, args, strict=True)]


def run_plan(
    plan: Plan,
    sizes: Mapping[str, int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: Mapping[str, Tensor],
    params: Mapping[str, float],
    tiles: random.Random,
    lag: Mapping[str, float] = MappingProxyType({}),
) -> tuple[Tensor, Tensor | None]:
    """Output ``[B, H, M, E]`` and log-sum-exp of a plan in float64.

    Maxima that ``lag`` names follow when they would grow by more than what it says.
    """
    values = Values(sizes, {"q": q, "k": k, "v": v}, dict(inputs), params, {})
    rows, keys = torch.arange(sizes["M"]), torch.arange(sizes["N"])
    for token_map in plan.tokens:
        values.inputs[token_map.result.name] = _run_map(values, plan, token_map)
    _place(values, plan, torch.arange(sizes["H"]), rows, keys[:0])
    seen = torch.zeros(sizes["B"], sizes["H"], sizes["M"], 1, dtype=torch.bool)
    for number, step in enumerate(plan.passes):
        for statistic in step.statistics:
            start = LOWEST if statistic.op == "max" else 0.0
            values.states[statistic.name] = torch.full(seen.shape, start, dtype=torch.float64)
        for accumulator in step.accumulators:
            assert accumulator.value.width is not None
            width = extent(accumulator.value.width, sizes)
            values.states[accumulator.name] = torch.zeros(*seen.shape, width, dtype=torch.float64)
        for tile in _tiles(keys, tiles):
            values.index["j"] = tile.view(1, 1, 1, -1)
            visible = values.of(plan.mask).expand(*seen.shape[:3], len(tile))
            if number == 0:
                seen |= visible.any(-1, keepdim=True)
            sums = [s for s in step.statistics if s.op == "sum"]
            old = {s.name: values.of(s.shift) for s in (*sums, *step.accumulators) if s.shift is not None}
            for statistic in step.statistics:
                if statistic.op == "max":
                    term = values.of(statistic.term).expand(visible.shape)
                    top = torch.where(visible, term, LOWEST).amax(-1, keepdim=True)
                    before = values.states[statistic.name]
                    grown = top - before > lag.get(statistic.name, 0.0)
                    values.states[statistic.name] = torch.where(grown, top, before)
            for part in (*sums, *step.accumulators):
                term = torch.where(visible, values.of(part.term), 0.0)
                total = values.states[part.name]
                if part.shift is not None:
                    scale = torch.exp(old[part.name] - values.of(part.shift))
                    total = total * (scale[..., None] if part in step.accumulators else scale)
                if part in step.accumulators:
                    added = torch.einsum("bhmn,bhmne->bhme", term, values.of(part.value).expand(*term.shape, -1))
                    values.states[part.name] = total + added[..., None, :]
                else:
                    values.states[part.name] = total + term.sum(-1, keepdim=True)
    values.index["j"] = keys[:1].view(1, 1, 1, -1)
    out = values.of(plan.output)
    out = torch.where(seen[..., None], out, 0.0).expand(*seen.shape, -1)[..., 0, :]
    if plan.lse is None:
        return out, None
    return out, torch.where(seen, values.of(plan.lse), float("-inf"))[..., 0]


def _tiles(keys: Tensor, tiles: random.Random) -> list[Tensor]:
    cuts = sorted(tiles.sample(range(1, len(keys)), min(len(keys) - 1, tiles.randrange(4)))) if len(keys) > 1 else []
    parts = [part for part in torch.tensor_split(keys, cuts) if len(part)]
    tiles.shuffle(parts)
    return parts


def _place(values: Values, plan: Plan, heads: Tensor, rows: Tensor, keys: Tensor) -> None:
    sizes = values.sizes
    values.index = {
        "b": torch.arange(sizes["B"]).view(-1, 1, 1, 1),
        "h": heads.view(1, -1, 1, 1),
        "row": rows.view(1, 1, -1, 1),
        "i": (rows + sizes["N"] - sizes["M"]).view(1, 1, -1, 1),
        "j": keys.view(1, 1, 1, -1),
    }
    values.index["g"] = values.of(plan.program.group)


def _run_map(values: Values, plan: Plan, token_map: TokenMap) -> Tensor:
    sizes = values.sizes
    one = torch.zeros(1, dtype=torch.long)
    rows, keys = torch.arange(sizes["M"]), torch.arange(sizes["N"])
    heads = torch.arange(sizes[token_map.per])
    if token_map.side == "query":
        _place(values, plan, heads, rows, one)
    else:
        _place(values, plan, heads, one, keys)
        if token_map.per == "G":
            values.index["h"], values.index["g"] = torch.tensor([[[[-1]]]]), heads.view(1, -1, 1, 1)
    found = values.of(token_map.expression)
    shape = (sizes["B"], sizes[token_map.per], max(1, len(rows) if token_map.side == "query" else 1), -1)
    found = found.expand(*shape, found.shape[-1]) if token_map.expression.is_vector else found.expand(shape)
    return found[:, :, :, 0] if token_map.side == "query" else found[:, :, 0]
