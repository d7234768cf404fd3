"""What each operation of :data:`attnc.ir.ops.OPS` does to tensors. ``where`` is not among them: it chooses points."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

OPERATIONS: MappingProxyType[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "or": torch.logical_or,
        "and": torch.logical_and,
        "not": torch.logical_not,
        "lt": torch.lt,
        "le": torch.le,
        "gt": torch.gt,
        "ge": torch.ge,
        "eq": torch.eq,
        "ne": torch.ne,
        "bitor": torch.bitwise_or,
        "bitxor": torch.bitwise_xor,
        "bitand": torch.bitwise_and,
        "shl": torch.bitwise_left_shift,
        "shr": torch.bitwise_right_shift,
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
        "floordiv": torch.floor_divide,
        "mod": torch.remainder,
        "neg": torch.neg,
        "pow": torch.pow,
        "min": torch.minimum,
        "max": torch.maximum,
        "abs": torch.abs,
        "sign": torch.sign,
        "floor": lambda x: torch.floor(x).long(),
        "exp": torch.exp,
        "log": torch.log,
        "sqrt": torch.sqrt,
        "rsqrt": torch.rsqrt,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "erf": torch.erf,
        "sin": torch.sin,
        "cos": torch.cos,
        "detach": torch.detach,
    }
)


def rope(x: Tensor, position: Tensor, base: Tensor, rotated: int) -> Tensor:
    """See :class:`attnc.ir.nodes.Rope`. ``x [P, D]``; ``position`` and ``base`` are ``[P]`` or ``[]``."""
    half = rotated // 2
    d = torch.arange(half, device=x.device, dtype=x.dtype)
    angle = position[..., None] * base[..., None] ** (-2 * d / max(rotated, 1))
    first, second, rest = x[..., :half], x[..., half:rotated], x[..., rotated:]
    cos, sin = angle.cos(), angle.sin()
    turned = torch.broadcast_tensors(first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*turned, rest.expand(*turned[0].shape[:-1], -1)), -1)
