"""Per-query choices of blocks, key block by key block: the queries that chose a block attend to it together.

Where each query chooses, a tile of neighbouring queries needs many blocks of which each of them takes few. Sorted by
the block they chose, queries form dense tiles instead (MoBA, arXiv 2502.13189; FlashMoBA, arXiv 2511.11571, gathers
them in the kernel). Their partial results are merged by log-sum-exp. All sums have one order: the same bits each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnc.ir import build
from attnc.ir.build import apply, literal
from attnc.ir.nodes import Index, Input, Kind, Literal, Node, Read, Size, Token
from attnc.ir.program import Body, Program
from attnc.ir.traverse import postorder
from attnc.routing.choice import Choice, unpack
from attnc.routing.choose import CAUSAL
from attnc.routing.dense import Call

if TYPE_CHECKING:
    from attnc.op import Op

LEAST_BLOCK = 16
"""Smaller blocks make too little work of a tile."""

TILES = (64, 128)
"""Queries of a tile: the larger where blocks are chosen by enough of them."""

COST = 1 << 15
"""What gathering and merging cost a query, in pairs of a tile: 24k was measured on an H200, 44k on a CPU."""

AT_ONCE = 1 << 27
"""Bits of choices unpacked together."""

COUNT = Input("count__", Kind.INT, (build.size("B"),))


ENTRY_COST = 512
"""The same of a kernel for each block in a list, by the memory that its partial results move; not yet measured."""


def visited(blocks: int, taken: float, causal: bool) -> float:
    """Blocks that tiles of neighbouring queries visit, of which each takes so many: for choices without locality."""
    return (1 - (1 - min(1.0, taken / max(blocks, 1))) ** TILES[0]) * blocks * (0.5 if causal else 1.0)


def saves(keys: int, block: int, most: int, causal: bool) -> bool:
    """Whether kernels that sort queries by lists of ``most`` blocks cost less than tiles of neighbouring queries."""
    blocks = -(-keys // block)
    return (visited(blocks, most, causal) - min(most, blocks)) * block > ENTRY_COST * most


@dataclass(slots=True)
class Regrouped:
    """The operators of one attention that can be regrouped: over a block, over its ragged end, over the own block."""

    block: int
    whole: Op
    ragged: Op
    own: Op | None

    @classmethod
    def of(cls, program: Program, body: Body, make: Callable[[Program], Op]) -> Regrouped | None:
        """``None`` where partial results cannot be merged, or a pair's score needs more than its two tokens."""
        if len(body.routes) != 1:
            return None
        (route,) = body.routes
        block = route.keys_block
        if route.queries != "query" or not isinstance(block, Literal) or block.value < LEAST_BLOCK:
            return None
        if not _is_softmax(body) or not _is_of_tokens(body.score) or not _is_of_tokens(body.value):
            return None
        takes_own = any(name == "self" for name, _ in (*route.always, *route.also))
        if body.mask is not literal(True) and not (body.mask is CAUSAL and takes_own):
            return None
        plain = replace(body, mask=literal(True), routes=())
        rest = replace(program, inputs=(), branches=(), space=(), group=build.index("h"))
        end = apply("lt", build.index("j"), build.read(COUNT, (build.index("b"),)))
        own = None
        if body.mask is CAUSAL:
            same = apply("eq", *(apply("floordiv", build.index(at), block) for at in "ij"))
            own = make(replace(program, inputs=(), branches=(), body=replace(plain, mask=apply("and", CAUSAL, same))))
        return cls(
            int(block.value),
            make(replace(rest, body=plain)),
            make(replace(rest, inputs=(COUNT,), body=replace(plain, mask=end))),
            own,
        )

    def pays(self, choice: Choice, call: Call) -> bool:
        """Whether tiles of neighbouring queries would visit so many more pairs that gathering and merging cost less.

        Taken for choices without locality, of as many blocks as queries spread over the sequence took on average.
        """
        words = choice.words[:, :, :: max(1, choice.words.shape[2] // 256)]
        blocks = -(-call.sizes["N"] // self.block)
        taken = float(unpack(words).sum(-1).float().mean()) if words.numel() else 0.0
        return (visited(blocks, taken, self.own is not None) - taken) * self.block > COST

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, choice: Choice, call: Call, arguments: dict[str, Any]
    ) -> Tensor | None:
        """The output ``[B, H, M, E]``; ``None`` where nobody chose anything."""
        lists = _lists(choice, call, self.block, self.own is not None)
        if lists is None and self.own is None:
            return None
        width = v.shape[-1]
        out = q.new_zeros(*q.shape[:3], width)
        lse = torch.full(q.shape[:3], float("-inf"), dtype=_wide(q), device=q.device)
        if self.own is not None:
            out, lse = self.own(q, k, v, return_lse=True, **arguments)
        if lists is None:
            return out
        n = call.sizes["N"]
        rows = _Rows.apply(q.reshape(-1, q.shape[-1]), lists.source, lists.place)  # type: ignore[no-untyped-call]
        keys, values = (
            _Blocks.apply(_split(x, self.block), lists.block_of_tile, lists.tiles)  # type: ignore[no-untyped-call]
            for x in (k, v)
        )
        given: dict[str, Any] = dict(arguments)
        op = self.whole
        if n % self.block and self.own is None:
            op = self.ragged
            blocks = -(-n // self.block)
            given[COUNT.name] = (n - lists.block_of_tile % blocks * self.block).clamp(max=self.block).to(torch.int32)
        tiles = rows.view(-1, 1, lists.tile, rows.shape[-1])
        found, sums = op(tiles, keys.view(len(tiles), 1, self.block, -1), values.view(len(tiles), 1, self.block, -1),
                         return_lse=True, **given)  # fmt: skip
        merged = _Merge.apply(  # type: ignore[no-untyped-call]
            found.reshape(-1, width), sums.flatten(), out.reshape(-1, width), lse.flatten(), lists
        )
        result: Tensor = merged.view(out.shape)
        return result


def _is_softmax(body: Body) -> bool:
    """Whether the weight is one softmax, and the output its sum: what can be merged."""
    raised = apply("exp", apply("sub", body.score, build.reduce_keys("max", body.score)))
    weight = apply("div", raised, build.reduce_keys("sum", raised))
    return body.weight is weight and body.output is build.reduce_keys("sum", apply("mul", weight, body.value))


def _is_of_tokens(node: Node) -> bool:
    for part in postorder(node):
        if isinstance(part, Index | Read) or (isinstance(part, Size) and part.name not in "DE"):
            return False
        if isinstance(part, Token) and part.name not in ("q", "k", "v"):
            return False
    return True


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _split(x: Tensor, block: int) -> Tensor:
    """``[B, G, N, D]`` as ``[B * G * blocks, block * D]``, filled up with 0."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % block))
    return padded.reshape(-1, block * x.shape[-1])


@dataclass(frozen=True, slots=True, eq=False)
class _Lists:
    """Who chose which block. Queries are numbered ``(b H + h) M + row``, places in tiles ``tile * t + n``.

    ``source [places]`` is the query of a place and ``used`` whether it has one; ``place [queries, most]`` the places of
    a query, -1 for none; ``block_of_tile [tiles]``; ``tiles [blocks]`` how many tiles a block has.
    """

    tile: int
    source: Tensor
    used: Tensor
    place: Tensor
    block_of_tile: Tensor
    tiles: Tensor


def _lists(choice: Choice, call: Call, block: int, without_own: bool) -> _Lists | None:
    """The lists of a choice; ``None`` if they are empty."""
    sizes, device = call.sizes, call.device
    B, H, M, G = (sizes[name] for name in "BHMG")
    blocks = -(-sizes["N"] // block)
    words = choice.words.expand(B, H, -1, -1)
    step = max(1, AT_ONCE // max(1, B * H * words.shape[-1] * 32))
    queries, keys = [], []
    heads = torch.arange(B * H, device=device).view(B, H, 1)
    owner = torch.arange(B, device=device)[:, None] * G + call.groups
    for lo in range(0, M, step):
        rows = torch.arange(lo, min(lo + step, M), device=device)
        chosen = unpack(words[:, :, lo : lo + step])[..., :blocks]
        if without_own:
            own = (rows + call.shift).div(block, rounding_mode="floor")
            chosen = chosen & (torch.arange(blocks, device=device) != own[:, None])
        b, h, row, at = chosen.nonzero(as_tuple=True)
        queries.append(heads[b, h, 0] * M + row + lo)
        keys.append(owner[b, h] * blocks + at)
    query, key = torch.cat(queries), torch.cat(keys)
    if not len(query):
        return None
    order = key.argsort(stable=True)
    count = torch.bincount(key, minlength=B * G * blocks)
    tile = TILES[1] if len(query) >= 3 * TILES[1] * B * G * blocks else TILES[0]
    tiles = (count + tile - 1) // tile
    by_block = key[order]
    within = torch.arange(len(key), device=device) - (count.cumsum(0) - count)[by_block]
    place = ((tiles.cumsum(0) - tiles) * tile)[by_block] + within
    total = int(tiles.sum())
    source = torch.zeros(total * tile, dtype=torch.long, device=device)
    used = torch.zeros(total * tile, dtype=torch.bool, device=device)
    source[place] = query[order]
    used[place] = True
    return _Lists(
        tile,
        source,
        used,
        _places(query[order], place, B * H * M),
        torch.repeat_interleave(torch.arange(len(tiles), device=device), tiles, output_size=total),
        tiles,
    )


def _places(query: Tensor, place: Tensor, queries: int) -> Tensor:
    """The places of each query, ``[queries, most]``, -1 for none."""
    order = query.argsort(stable=True)
    count = torch.bincount(query, minlength=queries)
    within = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[query[order]]
    found = torch.full((queries, int(count.max())), -1, dtype=torch.long, device=query.device)
    found[query[order], within] = place[order]
    return found


class _Rows(torch.autograd.Function):
    """``x[source]``; the gradient of a row is the sum over its places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x[source]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        (place,) = ctx.saved_tensors
        total = torch.zeros(len(place), grad.shape[1], dtype=_wide(grad), device=grad.device)
        for at in place.unbind(1):
            total += grad[at.clamp(min=0)] * (at >= 0)[:, None]
        return total.to(grad.dtype), None, None


class _Blocks(torch.autograd.Function):
    """``x[block_of_tile]``; the gradient of a block is the sum over its tiles, which are neighbours."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block_of_tile: Tensor, tiles: Tensor) -> Tensor:
        ctx.save_for_backward(tiles)
        return x[block_of_tile]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        (tiles,) = ctx.saved_tensors
        wide = grad.contiguous().to(_wide(grad))
        total: Tensor = torch.segment_reduce(wide, "sum", lengths=tiles, axis=0, unsafe=True)
        return total.to(grad.dtype), None, None


class _Merge(torch.autograd.Function):
    """One softmax from partial ones: that of each query's places, and ``own`` of each query (``lse`` -inf for none).

    With shares ``w = exp(lse - LSE)``: ``d out_part = w d``, ``d lse_part = w (dot(d, out_part) - dot(d, out))``.
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, sums: Tensor, own: Tensor, lse: Tensor, lists: _Lists) -> Tensor:
        places = lists.place
        each = torch.where(places >= 0, sums[places.clamp(min=0)], torch.full_like(sums[:1], float("-inf")))
        whole = torch.cat((lse[:, None], each), 1).logsumexp(1)
        largest = torch.where(whole.isneginf(), torch.zeros_like(whole), whole)
        out = own.to(_wide(own)) * (lse - largest).exp()[:, None]
        for at, part in zip(places.unbind(1), each.unbind(1), strict=True):
            out += parts[at.clamp(min=0)] * (part - largest).exp()[:, None]
        result = out.to(own.dtype)
        ctx.save_for_backward(parts, sums, own, lse, largest, result)
        ctx.lists = lists
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        parts, sums, own, lse, largest, result = ctx.saved_tensors
        lists: _Lists = ctx.lists
        wide = grad.to(largest.dtype)
        delta = (wide * result).sum(1)
        share = (sums - largest[lists.source]).exp() * lists.used
        of_place = grad[lists.source]
        d_parts = (of_place * share[:, None]).to(parts.dtype)
        d_sums = share * ((of_place.to(sums.dtype) * parts).sum(1) - delta[lists.source])
        mine = (lse - largest).exp()
        d_lse = mine * ((wide * own).sum(1) - delta)
        return d_parts, d_sums, (wide * mine[:, None]).to(own.dtype), d_lse, None
