"""Functions that slots call in kernels for Hopper: those of the portable families, some of them faster.

The faster ones are for elements of 16 bits: errors are maximal errors against float64.
"""

import triton
import triton.language as tl

from attnc.templates.hopper.gluon import gl
from attnc.templates.triton.lib import (
    LN2 as LN2,
)
from attnc.templates.triton.lib import (
    LOG2E as LOG2E,
)
from attnc.templates.triton.lib import (
    LOWEST as LOWEST,
)
from attnc.templates.triton.lib import (
    exp as exp,
)
from attnc.templates.triton.lib import (
    flat as flat,
)
from attnc.templates.triton.lib import (
    floor as floor,
)
from attnc.templates.triton.lib import (
    floor_div as floor_div,
)
from attnc.templates.triton.lib import (
    floor_mod as floor_mod,
)
from attnc.templates.triton.lib import (
    matmul as matmul,
)
from attnc.templates.triton.lib import (
    over_lanes as over_lanes,
)
from attnc.templates.triton.lib import (
    over_pair as over_pair,
)
from attnc.templates.triton.lib import (
    power as power,
)
from attnc.templates.triton.lib import (
    real_mod as real_mod,
)
from attnc.templates.triton.lib import (
    rescale as rescale,
)
from attnc.templates.triton.lib import (
    rope_angle as rope_angle,
)
from attnc.templates.triton.lib import (
    sign as sign,
)
from attnc.templates.triton.lib import (
    truth as truth,
)
from attnc.templates.triton.lib import (
    within as within,
)

SLACK: tl.constexpr = tl.constexpr(5.545177444479562)
"""How far scores may exceed a stale maximum: log(2**8), so that weights stay below 256."""


@triton.jit
def tanh(x):
    """Hyperbolic tangent by the instruction for it; relative error 2**-10.9."""
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def inverse(x):
    """``1 / x``."""
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sigmoid2(x):
    """``1 / (1 + 2 ** x)``; relative error 2**-21, at least 2**-63.

    One inverse serves two numbers, since the unit for exponentials and inverses is what is scarce:
    ``1 / a = b / (a b)``, where neither is above 2**63 and so the product is finite.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .f32 a, b, c;
        min.f32 a, $2, 0f427C0000;
        min.f32 b, $3, 0f427C0000;
        ex2.approx.ftz.f32 a, a;
        ex2.approx.ftz.f32 b, b;
        add.f32 a, a, 0f3F800000;
        add.f32 b, b, 0f3F800000;
        mul.f32 c, a, b;
        rcp.approx.ftz.f32 c, c;
        mul.f32 $0, c, b;
        mul.f32 $1, c, a;
        }""",
        "=&f,=&f,f,f", [x], dtype=tl.float32, is_pure=True, pack=2,
    )  # fmt: skip


@triton.jit
def log2(x):
    """The instruction for it: error 2**-22, absolute between 1/2 and 2, else relative; numbers below 2**-126 are 0."""
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def log(x):
    return log2(x) * LN2


@triton.jit
def power_fixed(x, Y: tl.constexpr):
    """``x ** Y`` for a constant exponent."""
    size = tl.exp2(log2(tl.abs(x)) * Y)
    if Y % 1.0 != 0.0:
        size = tl.where(x < 0.0, float("nan"), size)
    elif Y % 2.0 != 0.0:
        size = tl.where(x < 0.0, -size, size)
    return size


@triton.jit
def reduced(x):
    """``x`` less the nearest multiple of 2 pi, by multiply-adds: for ``x`` up to 2**24, where the odd numbers end."""
    return tl.inline_asm_elementwise(
        """{
        .reg .f32 n;
        fma.rn.f32 n, $1, 0f3E22F983, 0f4B400000;
        sub.f32 n, n, 0f4B400000;
        fma.rn.f32 $0, n, 0fC0C90FDB, $1;
        fma.rn.f32 $0, n, 0f343BBD2E, $0;
        }""",
        "=&f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def cos(x):
    """Cosine by the instruction for it; absolute error 2**-20."""
    return tl.inline_asm_elementwise(
        "cos.approx.ftz.f32 $0, $1;", "=f,f", [reduced(x)], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def sin(x):
    """Sine by the instruction for it; absolute error 2**-20."""
    return tl.inline_asm_elementwise(
        "sin.approx.ftz.f32 $0, $1;", "=f,f", [reduced(x)], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def with_sign(size, x):
    """``size * sign(x)``: the sign is a bit, and 0 has none."""
    signed = tl.inline_asm_elementwise(
        "lop3.b32 $0, $1, $2, 0x80000000, 0x78;", "=r,r,r", [size, x], dtype=tl.float32, is_pure=True, pack=1
    )
    return tl.where(x == 0.0, 0.0, signed)


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))``."""
    return sigmoid2(x * -LOG2E)


@triton.jit
def minus_keys(x, j, MASKED: tl.constexpr):
    """``x - j`` as reals, of ints below 2**24: one subtraction a pair, where the keys of the tile all exist.

    A thread has columns ``8 k + l`` of a tile, all ``k`` and two ``l``, so that ``k`` is a number in the machine code.
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
