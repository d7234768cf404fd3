"""What slots call with whole tiles of keys, laid out as products of a group of warps are.

A thread has two rows of a tile, and of each the columns ``8 k + l``, all ``k`` and two ``l``.
"""

import triton
import triton.language as tl

from attnc.templates.hopper.gluon import gl

SLACK: tl.constexpr = tl.constexpr(5.545177444479562)
"""How far scores may exceed a stale maximum: log(2**8), so that weights stay below 256."""


@triton.jit
def minus_keys(x, j, MASKED: tl.constexpr):
    """``x - j`` as reals, of ints below 2**24: one subtraction a pair, where the keys of the tile all exist.

    Of column ``8 k + l``, ``k`` is a number in the machine code.
    """
    if MASKED:
        far = (x - j).to(tl.float32)
    else:
        keys: tl.constexpr = j.shape[1]
        raw = gl.arange(0, keys, gl.SliceLayout(0, j.type.layout))
        first = (x - (j - gl.expand_dims(raw, 0))).to(tl.float32)
        tile = tl.reshape(first, [first.shape[0], keys // 8, 8])
        k = gl.arange(0, keys // 8, gl.SliceLayout(0, gl.SliceLayout(2, tile.type.layout))) * 8
        lane = gl.arange(0, 8, gl.SliceLayout(0, gl.SliceLayout(1, tile.type.layout)))
        tile = tile - gl.expand_dims(gl.expand_dims(lane, 0), 1).to(tl.float32)
        tile = tile - gl.expand_dims(gl.expand_dims(k, 0), 2).to(tl.float32)
        far = gl.convert_layout(tl.reshape(tile, first.shape), first.type.layout, assert_trivial=True)
    return far


@triton.jit
def shift_max(before, x):
    """A maximum that only shifts exponents: it follows when it would grow by more than ``SLACK``."""
    highest = tl.maximum(before, x)
    return tl.where(highest - before > SLACK, highest, before)


@triton.jit
def row_sum(before, factor, x):
    """``before * factor`` plus the sum of ``x`` over the keys.

    ``before`` is ``[rows, 8]``: each thread keeps what it adds up itself, so that no lanes talk to each other.
    """
    layout: tl.constexpr = before.type.layout
    part = tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 8, 8]), 1)
    part = gl.convert_layout(part, layout, assert_trivial=True)
    factor = gl.convert_layout(factor, gl.SliceLayout(1, layout), assert_trivial=True)
    return before * factor[:, None] + part


@triton.jit
def add_sum(before, x):
    """The same of a sum that is never rescaled."""
    layout: tl.constexpr = before.type.layout
    part = tl.sum(tl.reshape(x, [x.shape[0], x.shape[1] // 8, 8]), 1)
    return before + gl.convert_layout(part, layout, assert_trivial=True)
