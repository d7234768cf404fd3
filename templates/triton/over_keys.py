"""What slots call with whole tiles of keys: this family sums over them at once. Other families do these otherwise."""

import triton
import triton.language as tl


@triton.jit
def minus_keys(x, j, MASKED: tl.constexpr):
    """``x - j`` as reals, where ``x`` does not vary with the key."""
    return (x - j).to(tl.float32)


@triton.jit
def shift_max(before, x):
    """A running maximum that only shifts exponents."""
    return tl.maximum(before, x)


@triton.jit
def row_sum(before, factor, x):
    """``before * factor`` plus the sum of ``x`` over the keys of a tile."""
    return before * factor + tl.sum(x, 1)


@triton.jit
def add_sum(before, x):
    """The same of a sum that is never rescaled."""
    return before + tl.sum(x, 1)
