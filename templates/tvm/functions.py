"""Elementary functions as straight vector code: LLVM would call the scalar library once a lane for them.

Errors are measured in ``tests/test_tvm_functions.py``. ``float64`` goes to the C library, where precision is wanted
more than speed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from attnc.templates.tvm.lanes import library
from attnc.templates.tvm.processor import device_function, features, fma, intrinsic, quotient, scale_by_powers
from attnc.templates.tvm.values import Value, constant, maximum, minimum, select


def own_on_gpus(portable: Callable[[Value], Value]) -> Callable[[Value], Value]:
    """On a GPU ``attnc_NAME`` of its library takes the place of a function of ``float32``."""

    @functools.wraps(portable)
    def function(x: Value) -> Value:
        if "cuda" in features.get() and x.type == "float32":
            return device_function(f"attnc_{portable.__name__}", x)
        return portable(x)

    return function


def polynomial(x: Value, coefficients: Sequence[float]) -> Value:
    """Horner's scheme, highest power first."""
    result = constant(coefficients[0], x.type)
    for coefficient in coefficients[1:]:
        result = fma(x, result, coefficient)
    return result


@own_on_gpus
def exp(x: Value) -> Value:
    """``e**x``, to 1 ulp; results below the smallest normal number are 0 in threads that flush subnormals.

    ``x = n ln 2 + r`` with ``ln 2`` in two parts, and a minimax polynomial for ``e**r``, its relative error 4e-9. ``n``
    is added to the exponent of ``e**r``, which lies in [0.7, 1.5).
    """
    if x.type == "float64":
        return intrinsic("llvm.exp", x)
    scales = _scales(x)
    x = minimum(maximum(x, -104.0), 89.0).keep() if scales else x.keep()
    n, shifted, p = _expm1_of_rest(x)
    p = p + 1.0
    if scales:
        return scale_by_powers(p, n)
    scaled = (p.bits("int32") + (shifted.bits("int32") << 23)).bits("float32")
    return select(x < -87.33654, constant(0.0, "float32"), select(x <= 88.72283, scaled, x * math.inf))


def _scales(x: Value) -> bool:
    """Whether one instruction multiplies by powers of two."""
    return "avx512f" in features.get() and x.lanes % 16 == 0


def _expm1_of_rest(x: Value) -> tuple[Value, Value, Value]:
    """``n`` of ``x = n ln 2 + r``, also in the last bits of a number, and ``e**r - 1``."""
    shifted = fma(x, 1.44269504088896341, 12582912.0).keep()
    n = (shifted - 12582912.0).keep()
    r = fma(n, -0.693359375, x)
    r = fma(n, 2.12194440e-4, r).keep()
    p = polynomial(
        r,
        (1.38145394e-3, 8.36874545e-3, 4.16683890e-2, 1.66665211e-1, 4.99999940e-1),
    )
    return n, shifted, fma(p, r * r, r)


def log(x: Value) -> Value:
    """Natural logarithm, to 2 ulp: ``x = m 2**e`` with ``m`` in [sqrt(1/2), sqrt(2)); Cephes' ``logf``."""
    if x.type == "float64":
        return intrinsic("llvm.log", x)
    x = x.keep()
    tiny = (x < 1.17549435e-38).keep()
    scaled = select(tiny, x * 8388608.0, x)
    bits = scaled.bits("int32").keep()
    shifted = (bits - 0x3F3504F3).keep()
    exponent = (shifted >> 23).to("float32") - select(tiny, constant(23.0, "float32"), 0.0)
    exponent = exponent.keep()
    m = (((shifted & 0x7FFFFF) + 0x3F3504F3).bits("float32") - 1.0).keep()
    p = polynomial(
        m,
        (
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ),
    )
    square = (m * m).keep()
    tail = fma(p * m, square, exponent * -2.12194440e-4)
    result = fma(exponent, 0.693359375, m + fma(square, -0.5, tail))
    result = select(x.equals(math.inf), x, result)
    result = select(x.equals(0.0), constant(-math.inf, "float32"), result)
    return select(x >= 0.0, result, constant(math.nan, "float32"))


def sqrt(x: Value) -> Value:
    """Correctly rounded."""
    return intrinsic("llvm.sqrt", x)


def rsqrt(x: Value) -> Value:
    """``1 / sqrt(x)``, to 1 ulp."""
    return 1.0 / sqrt(x)


@own_on_gpus
def sigmoid(x: Value) -> Value:
    """``1 / (1 + e**-x)``, to 2 ulp."""
    return 1.0 / (1.0 + exp(-x))


@own_on_gpus
def tanh(x: Value) -> Value:
    """Hyperbolic tangent, to 3 ulp: ``e / (e + 2)`` with ``e = exp(2 x) - 1``, small arguments losing nothing."""
    if x.type == "float64":
        return intrinsic("llvm.tanh", x)
    x = minimum(maximum(x, -9.1), 9.1).keep()  # beyond, it is 1 to the last place
    n, shifted, p = _expm1_of_rest((x + x).keep())
    p = p.keep()
    one = constant(1.0, "float32").spread(x.lanes)
    power = (
        scale_by_powers(one, n) if _scales(x) else (one.bits("int32") + (shifted.bits("int32") << 23)).bits("float32")
    )
    power = power.keep()
    return quotient(fma(power, p, power - 1.0).keep(), fma(power, p, power + 1.0).keep())


def erf(x: Value) -> Value:
    """Error function, to 2 ulp: two minimax polynomials, the outer one for ``log(1 - erf)``."""
    if x.type == "float64":
        return library("erf", x)
    x = x.keep()
    size = intrinsic("llvm.fabs", x).keep()
    square = (x * x).keep()
    r = polynomial(size, (-1.72853470e-5, 3.83197126e-4))
    u = polynomial(size, (-3.88396438e-3, 2.42546219e-2))
    r = fma(r, square, u)
    r = fma(r, size, -1.06777877e-1)
    r = fma(r, size, -6.34846687e-1)
    r = fma(r, size, -1.28717512e-1)
    r = fma(r, size, -size)
    far = intrinsic("llvm.copysign", 1.0 - exp(r), x)
    p = polynomial(
        square,
        (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1),
    )
    return select(size > 0.927734375, far, fma(p, x, x))


def sin(x: Value) -> Value:
    """Sine, to 2 ulp for ``|x|`` up to 1e8; the argument is reduced in double."""
    return intrinsic("llvm.sin", x) if x.type == "float64" else sin_cos(x)[0].to("float32")


def cos(x: Value) -> Value:
    """Cosine, to 2 ulp for ``|x|`` up to 1e8; the argument is reduced in double."""
    return intrinsic("llvm.cos", x) if x.type == "float64" else sin_cos(x)[1].to("float32")


def sin_cos(x: Value) -> tuple[Value, Value]:
    """Sine and cosine as ``float32`` of an angle that may be ``float64``: Cephes' ``sinf`` and ``cosf``."""
    angle = x.to("float64").keep()
    n = intrinsic("llvm.rint", angle * (2.0 / math.pi)).keep()
    r = fma(n, -1.5707963267948966, angle)
    r = fma(n, -6.123233995736766e-17, r).to("float32").keep()
    quarter = (n - intrinsic("llvm.floor", n * 0.25) * 4.0).to("int32").keep()
    square = (r * r).keep()
    s = polynomial(square, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1))
    s = fma(s * square, r, r).keep()
    c = polynomial(square, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2))
    c = fma(c, square * square, fma(square, -0.5, 1.0)).keep()
    odd = (quarter & 1).differs(0).keep()
    sine = select(odd, c, s)
    cosine = select(odd, s, c)
    return (
        select((quarter & 2).differs(0), -sine, sine),
        select(((quarter + 1) & 2).differs(0), -cosine, cosine),
    )


def power(x: Value, y: Value) -> Value:
    """``x**y`` by the C library's ``pow`` in double."""
    return intrinsic("llvm.pow", x.to("float64"), y.to("float64")).to(x.type)


UNARY: dict[str, Callable[[Value], Value]] = {
    "exp": exp,
    "log": log,
    "sqrt": sqrt,
    "rsqrt": rsqrt,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "erf": erf,
    "sin": sin,
    "cos": cos,
}
