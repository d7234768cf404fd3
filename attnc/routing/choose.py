"""Choosing: a route of a program on given tensors, a stretch of query rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from attnc.analyse.scalar import evaluate
from attnc.ir import build
from attnc.ir.build import apply
from attnc.ir.nodes import Kind, Node, Window
from attnc.ir.program import Route
from attnc.ir.traverse import postorder
from attnc.routing import select
from attnc.routing.choice import WORD, Choice, Held, Lists, Words, lists_from, pack
from attnc.routing.dense import Call, Choosers, Dense, bounds_of
from attnc.routing.pools import any_in_blocks, window_count

MOST_NUMBERS = 1 << 26
"""How many numbers of the widest kind are made at a time; choosers are taken in stretches that keep to it."""


Kernels: TypeAlias = Callable[[Call, int, Sequence[Choice]], Choice | None]


def _no_kernels(call: Call, at: int, before: Sequence[Choice]) -> Choice | None:
    return None


@torch.no_grad()
def choose(
    call: Call, mask: Node, routes: Sequence[Route], most: int | None = None, kernels: Kernels = _no_kernels
) -> list[Choice]:
    """The choices of the routes of one body, in order: each is among what those before it leave.

    They are words, or lists of at most ``most``, which must be enough. ``kernels(call, at, before)`` gives the choice
    of route ``at``, or ``None`` where it is to be made here.
    """
    made: list[Choice] = []
    for at, route in enumerate(routes):
        found = kernels(call, at, made)
        if found is not None:
            made.append(found)
            continue
        made.append(_keep(call, route) if route.queries == "keep" else _choose(call, mask, made, route, most))
    return made


def visible_pairs(call: Call, mask: Node, choices: Sequence[Choice], lo: int, hi: int) -> Tensor:
    """The mask and the choices at the rows ``lo .. hi - 1``: ``[B or 1, H or 1, hi - lo, N or 1]``."""
    seen = Dense(call, Choosers(lo, hi)).at(mask)
    for choice in choices:
        seen = seen & choice.pairs(lo, hi, call)
    return seen


def _keep(call: Call, route: Route) -> Choice:
    assert route.rank is not None
    assert route.select is not None
    sizes = call.sizes
    rows = Choosers(0, sizes["M"])
    dense = Dense(call, rows, bounds=bounds_of(*route.roots()))
    rank = _without_bounds(dense.at(route.rank), dense.bounds).squeeze(-1)
    rank = rank.expand(*rank.shape[:2], sizes["M"])
    every = torch.ones_like(rank, dtype=torch.bool)
    n = _without_bounds(Dense(call, Choosers(0, sizes["M"], 0)).at(route.select.args[0]), 0)[..., 0]
    ranks = select.as_ranks(rank, every, torch.zeros_like(every))
    kept = select.top(ranks, every, n)
    return Choice(Words(pack(kept[..., None])), 0, 1, rows)


def _choose(call: Call, mask: Node, before: Sequence[Choice], route: Route, most: int | None) -> Choice:
    block = _static(call, route.keys_block)
    blocks = -(-call.sizes["N"] // block)
    every = choosers_of(call, route)
    if not call.sizes["M"] or not call.sizes["N"]:
        shape = (1, 1, every.count(call.shift), -(-blocks // WORD))
        none = torch.zeros(shape, dtype=torch.int32, device=call.device)
        return Choice(Words(none), block, blocks, every)
    assert route.select is not None
    shared: dict[Node, Tensor] = {}
    parts = _stretches(call, every, _widest(call, mask, before, route, block))
    ranked: Iterator[_Ranked] = (_rank(call, mask, before, route, part, block, shared) for part in parts)
    if dict(route.select.options).get("scope", "chooser") != "chooser":
        ranked = iter([_joined(list(ranked))])
    held = [_held(_selected(call, route, one), most) for one in ranked]
    return Choice(_put_together(held), block, blocks, every)


def _held(chosen: Tensor, most: int | None) -> Held:
    return Words(pack(chosen)) if most is None else lists_from(chosen, most)


def _put_together(held: Sequence[Held]) -> Held:
    """The choices of stretches of choosers as one."""

    def joined(parts: Sequence[Tensor]) -> Tensor:
        heads = [max(part.shape[at] for part in parts) for at in (0, 1)]
        return torch.cat([part.expand(*heads, *part.shape[2:]) for part in parts], 2)

    lists = [one for one in held if isinstance(one, Lists)]
    if lists:
        return Lists(joined([one.numbers for one in lists]), joined([one.counts for one in lists]))
    return Words(joined([one.bits for one in held if isinstance(one, Words)]))


def choosers_of(call: Call, route: Route) -> Choosers:
    """All who choose by a route."""
    rows = call.sizes["M"]
    if route.queries in ("query", "keep"):
        return Choosers(0, rows)
    if route.queries == "head":
        return Choosers(0, rows, 0)
    assert route.queries_block is not None
    block = _static(call, route.queries_block)
    return Choosers(0, rows, block, call.shift // block)


def _widest(call: Call, mask: Node, before: Sequence[Choice], route: Route, block: int) -> int:
    """How many numbers a query row stands for in the widest tensor."""
    heads, n = max(1, call.sizes["B"] * call.sizes["H"]), call.sizes["N"]
    blocks = heads * -(-n // block)
    if _in_closed_form(mask, before, route) and not any(node.axes >= {"i", "j"} for node in postorder(*route.roots())):
        return blocks
    return max(blocks, n * max(1, heads // 8))


def _stretches(call: Call, every: Choosers, widest: int) -> Iterator[Choosers]:
    """All choosers in stretches of contiguous rows."""
    rows = call.sizes["M"]
    step = max(1, MOST_NUMBERS // widest)
    if every.block == 0:
        yield every
        return
    if every.block:
        step = max(every.block, step // every.block * every.block)
    lo = 0
    while lo < rows:
        hi = lo + step
        if every.block:
            hi -= (hi + call.shift) % every.block
        hi = min(hi, rows)
        first = (lo + call.shift) // every.block if every.block else 0
        yield Choosers(lo, hi, every.block, first)
        lo = hi


@dataclass(frozen=True, slots=True, eq=False)
class _Ranked:
    """What a stretch of choosers selects from, ``[B or 1, H or 1, C, blocks]`` each, and what evaluates for it."""

    dense: Dense
    rank: Tensor
    candidates: Tensor
    always: Tensor
    also: Tensor


def _joined(pieces: list[_Ranked]) -> _Ranked:
    names = ("rank", "candidates", "always", "also")
    return _Ranked(pieces[0].dense, *(torch.cat([getattr(piece, name) for piece in pieces], 2) for name in names))


def _rank(
    call: Call,
    mask: Node,
    before: Sequence[Choice],
    route: Route,
    part: Choosers,
    block: int,
    shared: dict[Node, Tensor],
) -> _Ranked:
    windows: dict[tuple[int, int], Tensor] = {}
    if _in_closed_form(mask, before, route):
        visible = _visible_blocks(call, mask, part, block)
    else:
        pairs = visible_pairs(call, mask, before, part.row_lo, part.row_hi)
        pairs = pairs.expand(*pairs.shape[:2], part.row_hi - part.row_lo, call.sizes["N"])
        if part.block is not None:
            size = part.block or part.row_hi - part.row_lo
            lacking = (part.row_lo + call.shift) % size if part.block else 0
            pairs = any_in_blocks(pairs, 2, size, lacking)
        visible = any_in_blocks(pairs, 3, block)
        windows = _windows(call, route, pairs)
    dense = Dense(call, part, block, bounds_of(*route.roots()), visible, windows, shared=shared)
    taken = []
    for listed in (route.always, route.also):
        found = torch.zeros_like(visible)
        for name, node in listed:
            found = found | _taken(call, dense, name, node, visible, block)
        taken.append(found & visible)
    candidates = visible
    if route.candidates is not None:
        candidates = visible & _at(dense, route.candidates)
        dense.candidates = candidates
        dense.memo.clear()
    rank = torch.zeros((), dtype=call.dtype, device=call.device)
    if route.rank is not None:
        rank = _at(dense, route.rank)
    shape = torch.broadcast_shapes(rank.shape, candidates.shape, *(x.shape for x in taken))
    return _Ranked(dense, *(x.expand(shape) for x in (rank, candidates, *taken)))


CAUSAL = apply("le", build.index("j"), build.index("i"))


def _in_closed_form(mask: Node, before: Sequence[Choice], route: Route) -> bool:
    """Whether the visible blocks are known without looking at pairs."""
    has_windows = any(isinstance(node, Window) for node in postorder(*route.roots()))
    return mask in (CAUSAL, build.literal(True)) and not before and not has_windows


def _visible_blocks(call: Call, mask: Node, part: Choosers, block: int) -> Tensor:
    """The visible blocks of a causal mask, or of none: ``[1, 1, C, blocks]``."""
    first = torch.arange(-(-call.sizes["N"] // block), device=call.device) * block
    if part.block is None:
        last = torch.arange(part.row_lo, part.row_hi, device=call.device) + call.shift
    else:
        end = part.row_hi + call.shift - 1
        ends = torch.arange(part.count(call.shift), device=call.device) + part.first + 1
        last = (ends * part.block - 1).clamp(max=end) if part.block else torch.full_like(ends, end)
    seen = first <= last[:, None] if mask is CAUSAL else torch.ones(len(last), len(first), device=call.device) > 0
    return seen[None, None]


def _windows(call: Call, route: Route, pairs: Tensor) -> dict[tuple[int, int], Tensor]:
    """For each kind of windows, which are seen whole."""
    found = {}
    for node in postorder(*route.roots()):
        if isinstance(node, Window):
            length, stride = _static(call, node.length), _static(call, node.stride)
            if (length, stride) not in found:
                count = window_count(pairs.shape[-1], length, stride)
                seen = pairs.unfold(-1, length, stride).all(-1) if count else pairs[..., :0]
                found[length, stride] = seen
    return found


def _taken(call: Call, dense: Dense, name: str, node: Node | None, visible: Tensor, block: int) -> Tensor:
    """One item of ``always`` or ``also``."""
    at = dense.choosers
    match name:
        case "self":
            if at.block is None:
                lo = hi = torch.arange(at.row_lo, at.row_hi, device=call.device) + call.shift
            else:
                assert at.block
                lo = (torch.arange(at.count(call.shift), device=call.device) + at.first) * at.block
                hi = lo + at.block - 1
            first = torch.arange(visible.shape[-1], device=call.device) * block
            return (first + block > lo[:, None]) & (first <= hi[:, None])
        case "first" | "last":
            assert node is not None
            seen = visible if name == "first" else visible.flip(-1)
            found = seen.cumsum(-1) <= _at(dense, node)
            return found if name == "first" else found.flip(-1)
        case _:
            assert node is not None
            return _at(dense, node)


def _selected(call: Call, route: Route, ranked: _Ranked) -> Tensor:
    """The chosen blocks."""
    rule, dense = route.select, ranked.dense
    rank, candidates, always, also = ranked.rank, ranked.candidates, ranked.always, ranked.also
    assert rule is not None
    if rule.how == "given":
        return always | also | (candidates & _given(dense, rule.args[0], candidates.shape[-1]))
    options = dict(rule.options)
    scope = options.get("scope", "chooser")
    if rule.how == "above":
        return always | also | (candidates & (rank.nan_to_num(nan=float("-inf")) > _at(dense, rule.args[0])))
    shape = rank.shape
    if scope == "heads" and shape[1] == 1:
        rank, candidates, always, also = (
            x.expand(-1, call.sizes["H"], -1, -1) for x in (rank, candidates, always, also)
        )
        shape = rank.shape
    start = {"chooser": 3, "head": 2, "heads": 1}[str(scope)]
    rank_, among, first = (x.flatten(start) if start < 3 else x for x in (rank, candidates, always))
    n = _flat(_at(dense, rule.args[0]), start)
    ranks = select.as_ranks(rank_, among, first)
    taken = among | first
    if rule.how == "mass":
        least = options["least"]
        assert isinstance(least, Node)
        found = select.mass(rank_, ranks, taken, n, _flat(_at(dense, least), start), options["crossing"] == "include")
    else:
        if rule.args[0].kind is Kind.REAL:
            n = (n * taken.sum(-1, keepdim=True)).floor().long().clamp(min=1)
        found = select.top(ranks, taken, n)
    return always | also | found.view(shape)


def _given(dense: Dense, node: Node, blocks: int) -> Tensor:
    """Blocks by number: numbers that are none are left out, repeated ones count once. Or a truth value for each."""
    if not node.is_vector:
        return _at(dense, node)
    numbers = dense.at(node)
    numbers = _without_bounds(numbers, dense.bounds).squeeze(-2)
    inside = (numbers >= 0) & (numbers < blocks)
    found = torch.zeros(*numbers.shape[:-1], blocks + 1, dtype=torch.bool, device=numbers.device)
    return found.scatter(-1, torch.where(inside, numbers, blocks), True)[..., :blocks]


def _flat(x: Tensor, start: int) -> Tensor:
    """A number of each chooser as one of each scope: that of its first chooser."""
    x = x[..., :1]
    for at in range(start, 3):
        x = x.narrow(at, 0, 1)
    return x.flatten(start) if start < 3 else x


def _at(dense: Dense, node: Node) -> Tensor:
    """A value ``[B or 1, H or 1, C or 1, blocks or 1]``."""
    return _without_bounds(dense.at(node), dense.bounds)


def _without_bounds(x: Tensor, bounds: int) -> Tensor:
    return x.flatten(2, 2 + bounds)


def _static(call: Call, node: Node) -> int:
    return int(evaluate(node, call.sizes))
