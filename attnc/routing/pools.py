"""Means, maxima, minima and sums over blocks and windows along one dimension of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

_NEUTRAL = {"mean": 0.0, "sum": 0.0, "max": float("-inf"), "min": float("inf")}


def pool_blocks(x: Tensor, dim: int, block: int, before: int, op: str) -> Tensor:
    """``x`` reduced over blocks of ``block`` along ``dim``, of which the first lacks ``before`` elements.

    Blocks at either end are reduced over the elements they have.
    """
    size = x.shape[dim]
    count = -(-(size + before) // block)
    ends = [size + before - at * block for at in range(count)]
    has = [min(block, end) - (before if at == 0 else 0) for at, end in enumerate(ends)]
    tail = [0, 0] * (x.dim() - 1 - dim)
    padded = torch.nn.functional.pad(x, [*tail, before, count * block - size - before], value=_NEUTRAL[op])
    split: Tensor = padded.unflatten(dim, (count, block))
    match op:
        case "max":
            return split.amax(dim + 1)
        case "min":
            return split.amin(dim + 1)
        case "sum":
            return split.sum(dim + 1)
        case _:
            shape = [-1 if at == dim else 1 for at in range(x.dim())]
            return split.sum(dim + 1) / torch.tensor(has, dtype=x.dtype, device=x.device).view(shape)


def any_in_blocks(x: Tensor, dim: int, block: int, before: int = 0) -> Tensor:
    """The same for truth values: whether any element of a block is true."""
    count = -(-(x.shape[dim] + before) // block)
    tail = [0, 0] * (x.dim() - 1 - dim)
    padded = torch.nn.functional.pad(x, [*tail, before, count * block - x.shape[dim] - before])
    split: Tensor = padded.unflatten(dim, (count, block))
    return split.any(dim + 1)


def window_count(size: int, length: int, stride: int) -> int:
    """How many whole windows there are."""
    return max(0, (size - length) // stride + 1)


def window_means(x: Tensor, dim: int, length: int, stride: int) -> Tensor:
    """The means over whole windows along ``dim``."""
    if x.shape[dim] < length:
        return x.narrow(dim, 0, 0)
    return x.unfold(dim, length, stride).mean(-1)


def shares(size: int, length: int, stride: int, block: int, device: torch.device) -> Tensor:
    """``[windows, blocks]``: how many keys each window and block have in common."""
    start = torch.arange(window_count(size, length, stride), device=device)[:, None] * stride
    first = torch.arange(-(-size // block), device=device)[None] * block
    last = (first + block).clamp(max=size)
    return (torch.minimum(start + length, last) - torch.maximum(start, first)).clamp(min=0)


def pool_windows(x: Tensor, dim: int, weight: Tensor, op: str) -> Tensor:
    """``x [.., windows, ..]`` reduced to blocks by what they share, ``weight [windows, blocks]``.

    ``sum`` weighs each window; the others take each window that shares anything once. Without one: 0 for a sum, minus
    (``min``: plus) infinity otherwise.
    """
    moved = x.movedim(dim, -1)
    if op == "sum":
        return (moved @ weight.to(x.dtype)).movedim(-1, dim)
    touches = weight > 0
    if op == "mean":
        return (moved @ touches.to(x.dtype) / touches.sum(0)).movedim(-1, dim)
    neutral = float("inf") if op == "min" else float("-inf")
    found = x.new_full((*moved.shape[:-1], weight.shape[1]), neutral)
    reduce = torch.minimum if op == "min" else torch.maximum
    first = touches.to(torch.uint8).argmax(0) if len(weight) else touches.sum(0)
    for at in range(int(touches.sum(0).max()) if touches.numel() else 0):
        place = (first + at).clamp(max=len(weight) - 1)
        part = moved[..., place]
        found = reduce(found, torch.where(touches.gather(0, place[None])[0], part, torch.full_like(part, neutral)))
    return found.movedim(-1, dim)
