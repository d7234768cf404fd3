"""From ranks to chosen blocks. Ties go to the lower index; what is not a number ranks last."""

from __future__ import annotations

import torch
from torch import Tensor


def as_ranks(rank: Tensor, candidates: Tensor, always: Tensor) -> Tensor:
    """Ranks with ``always`` first, and other blocks than candidates at minus infinity, which candidates are above."""
    least = torch.finfo(rank.dtype).min
    rank = rank.nan_to_num(nan=least, neginf=least, posinf=torch.finfo(rank.dtype).max)
    rank = torch.where(candidates, rank, torch.full_like(rank, float("-inf")))
    return torch.where(always, torch.full_like(rank, float("inf")), rank)


def top(ranks: Tensor, taken: Tensor, n: Tensor) -> Tensor:
    """The ``n`` highest of ``ranks [.., blocks]`` among ``taken``; ``n [.., 1]`` is clamped to the blocks there are."""
    blocks = ranks.shape[-1]
    n = n.clamp(0, blocks).expand(*ranks.shape[:-1], 1)
    most = int(n.max()) if n.numel() else 0
    if most == 0:
        return torch.zeros_like(taken)
    highest = ranks.topk(most, dim=-1).values
    last = highest.gather(-1, (n - 1).clamp(min=0))
    above = ranks > last
    ties = (ranks == last) & taken
    left = n - above.sum(-1, keepdim=True)
    chosen: Tensor = taken & (above | (ties & (ties.cumsum(-1, dtype=torch.int32) <= left))) & (n > 0)
    return chosen


def mass(rank: Tensor, ranks: Tensor, taken: Tensor, p: Tensor, least: Tensor, include: bool) -> Tensor:
    """The fewest blocks in descending order of ``ranks`` whose ``rank`` sums to ``p`` of the sum over ``taken``.

    With ``include`` the block that crosses ``p`` is one of them. At least ``least`` are; ranks below 0 count as 0.
    """
    share = torch.where(taken, rank.nan_to_num(nan=0.0).clamp(min=0), torch.zeros_like(rank))
    order = ranks.argsort(dim=-1, descending=True, stable=True)
    sums = share.gather(-1, order).cumsum(-1)
    goal = p * sums[..., -1:]
    before = torch.nn.functional.pad(sums, (1, 0))[..., :-1]
    within = before < goal if include else sums <= goal
    within |= torch.arange(rank.shape[-1], device=rank.device) < least
    return torch.zeros_like(taken).scatter(-1, order, within) & taken
