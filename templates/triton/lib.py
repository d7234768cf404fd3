"""Functions that slots call: what Triton lacks, or does otherwise than the language says.

Accuracies are maximal errors against float64, measured on a dense grid of float32 (tests/test_triton_lib.py).
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOWEST: tl.constexpr = tl.constexpr(-2.0e38)
"""Where a running maximum starts: finite, also after multiplication by log2(e)."""


@triton.jit
def floor_div(a, b):
    """Quotient of ints, rounded down (Triton rounds towards zero)."""
    quotient = a // b
    return quotient - ((a - quotient * b != 0) & ((a < 0) != (b < 0))).to(tl.int32)


@triton.jit
def floor_mod(a, b):
    """Remainder of ints with the sign of ``b``."""
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


@triton.jit
def real_mod(a, b):
    """Remainder of reals with the sign of ``b``."""
    rest = a - tl.floor(a / b) * b
    rest = tl.where((rest != 0.0) & ((rest < 0.0) != (b < 0.0)), rest + b, rest)
    return tl.where(tl.abs(rest) >= tl.abs(b), 0.0, rest)


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2E)


@triton.jit
def log(x):
    return tl.log2(x) * LN2


@triton.jit
def inverse(x):
    """``1 / x`` of a positive number: two instructions where a division is nine."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def sigmoid2(x):
    """``1 / (1 + 2 ** x)``: the power may overflow, the inverse is then 0."""
    return inverse(1.0 + tl.exp2(x))


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))``."""
    return sigmoid2(x * -LOG2E)


@triton.jit
def tanh(x):
    """Hyperbolic tangent: an odd polynomial near 0, where the exponential form would cancel."""
    size = tl.abs(x)
    square = x * x
    e = tl.exp2(size * (-2.0 * LOG2E))
    far = (1.0 - e) * inverse(1.0 + e)
    series = -0.0218694885 + square * 0.0088632355
    near = size + size * square * (-0.3333333333 + square * (0.1333333333 + square * (-0.0539682540 - square * series)))
    magnitude = tl.where(size < 0.25, near, far)
    return tl.where(x < 0.0, -magnitude, magnitude)


@triton.jit
def within(x, MOST: tl.constexpr):
    """``0 <= x <= MOST`` for an int, by one comparison: as an unsigned number a negative one is larger."""
    return x.to(tl.uint32, bitcast=True) <= MOST


@triton.jit
def sign(x):
    """1, 0 or -1, in the type of ``x``."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def with_sign(size, x):
    """``size * sign(x)``."""
    return size * sign(x)


@triton.jit
def minus_keys(x, j, MASKED: tl.constexpr):
    """``x - j`` as reals, where ``x`` does not vary with the key; other families do it faster."""
    return (x - j).to(tl.float32)


@triton.jit
def power(x, y):
    """``x ** y`` on reals: a negative base takes whole exponents only, else the result is NaN."""
    y = tl.where(x < 0.0, y, y)  # of the shape of x: Triton's interpreter cannot spread a truth value
    whole = tl.floor(y) == y
    odd = whole & (tl.floor(y * 0.5) * 2.0 != y)
    size = tl.exp2(y * tl.log2(tl.abs(x)))
    size = tl.where(x == 0.0, tl.where(y > 0.0, 0.0, float("inf")), size)
    signed = tl.where((x < 0.0) & odd, -size, size)
    signed = tl.where((x < 0.0) & (whole == 0), float("nan"), signed)
    return tl.where(y == 0.0, 1.0, signed)


@triton.jit
def power_fixed(x, Y: tl.constexpr):
    """``x ** Y`` for a constant exponent."""
    size = tl.exp2(tl.log2(tl.abs(x)) * Y)
    if Y % 1.0 != 0.0:
        size = tl.where(x < 0.0, float("nan"), size)
    elif Y % 2.0 != 0.0:
        size = tl.where(x < 0.0, -size, size)
    return size


@triton.jit
def floor(x):
    return tl.floor(x).to(tl.int32)


@triton.jit
def truth(x):
    """An int or bool that was loaded, as a truth value."""
    return x != 0


@triton.jit
def over_pair(x, i, j):
    """A value that varies with one side only, repeated over the pairs of a tile."""
    return x + ((i + j) * 0).to(tl.float32)


@triton.jit
def turned(x, QUARTERS: tl.constexpr):
    """``sin(x + QUARTERS * pi / 2)``. The reduction in float64 is exact enough for any position, and short code."""
    quarters = x.to(tl.float64) * 0.6366197723675814
    nearest = tl.floor(quarters + 0.5)
    angle = ((quarters - nearest) * 1.5707963267948966).to(tl.float32)
    which = (nearest - 4.0 * tl.floor(nearest * 0.25)).to(tl.int32) + QUARTERS
    square = angle * angle
    sine = square * (-0.1666666667 + square * (0.0083333333 + square * (-0.0001984127 + square * 0.0000027557)))
    sine = angle + angle * sine
    cosine = 0.0416666667 + square * (-0.0013888889 + square * (0.0000248016 - square * 0.0000002756))
    cosine = 1.0 - 0.5 * square + square * square * cosine
    size = tl.where((which & 1) == 0, sine, cosine)
    return tl.where((which & 2) == 0, size, -size)


@triton.jit
def sin(x):
    return turned(x, 0)


@triton.jit
def cos(x):
    return turned(x, 1)


@triton.jit
def over_lanes(x, row, lane):
    """A vector that may be the same for all tokens, repeated over a tile of tokens."""
    return x + ((row + lane) * 0).to(tl.float32)


@triton.jit
def matmul(x, matrix):
    """``[tokens, d] x [d, e]`` in float32; short or narrow operands are summed without tensor cores."""
    if x.shape[0] >= 16 and x.shape[1] >= 16 and matrix.shape[1] >= 16:
        product = tl.dot(x, matrix, input_precision="ieee")
    else:
        product = tl.sum(x[:, :, None] * matrix[None, :, :], 1)
    return product


@triton.jit
def rope_angle(position, pair, base, ROTATED: tl.constexpr):
    """``position * base ** (-2 pair / ROTATED)`` brought into [0, 2 pi): in float64, since positions are large."""
    exponent = pair.to(tl.float64) * (-2.0 / ROTATED)
    turn = position * tl.exp(exponent * tl.log(base + exponent * 0.0)) * 0.15915494309189535
    return ((turn - tl.floor(turn)) * 6.283185307179586).to(tl.float32)


@triton.jit
def shift_max(before, x):
    """A running maximum that only shifts exponents; other families may let it lag."""
    return tl.maximum(before, x)


@triton.jit
def row_sum(before, factor, x):
    """``before * factor`` plus the sum of ``x`` over the keys of a tile; other families may put off parts of it."""
    return before * factor + tl.sum(x, 1)


@triton.jit
def add_sum(before, x):
    """The same of a sum that is never rescaled."""
    return before + tl.sum(x, 1)


@triton.jit
def rescale(before, after):
    """The factor for what was summed relative to ``before``; 1 where nothing moved, also at infinity."""
    return tl.where(before == after, 1.0, tl.exp2((before - after) * LOG2E))


@triton.jit
def flat(x):
    """``[rows, 1]`` as ``[rows]``."""
    return tl.max(x, 1)
