"""Functions that slots call in kernels for Hopper: those of the portable families, some of them faster.

The faster ones are for elements of 16 bits: errors are maximal errors against float64.
"""

import triton
import triton.language as tl

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
