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
    cos as cos,
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
    log as log,
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
    power_fixed as power_fixed,
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
    sin as sin,
)
from attnc.templates.triton.lib import (
    truth as truth,
)
from attnc.templates.triton.lib import (
    turned as turned,
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
def sigmoid(x):
    """``1 / (1 + exp(-x))``; relative error 2**-16, at least 2**-126.

    The inverse is Newton's method twice from a guess by the bits: the unit for exponentials is what is scarce.
    """
    y = 1.0 + tl.exp2(tl.minimum(x * -LOG2E, 126.0))
    guess = (0x7EF311C7 - y.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    guess = guess * (2.0 - y * guess)
    return guess * (2.0 - y * guess)


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
