"""Errors of templates/triton/lib.py against float64, in Triton's interpreter."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from attnc.templates.triton import lib


@triton.jit
def real_functions(x_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, lib.tanh(x))
    tl.store(out_ptr + N + at, lib.sigmoid(x))
    tl.store(out_ptr + 2 * N + at, lib.exp(x))
    tl.store(out_ptr + 3 * N + at, lib.log(tl.abs(x)))
    tl.store(out_ptr + 4 * N + at, lib.power(tl.abs(x), x * 0.25))
    tl.store(out_ptr + 5 * N + at, lib.power_fixed(x, 5.0))
    tl.store(out_ptr + 6 * N + at, lib.power_fixed(x, -2.0))
    tl.store(out_ptr + 7 * N + at, lib.real_mod(x, -1.5))
    tl.store(out_ptr + 8 * N + at, lib.sin(x))
    tl.store(out_ptr + 9 * N + at, lib.cos(x * 131072.0))


@triton.jit
def int_functions(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    a, b = tl.load(a_ptr + at), tl.load(b_ptr + at)
    tl.store(out_ptr + at, lib.floor_div(a, b))
    tl.store(out_ptr + N + at, lib.floor_mod(a, b))
    tl.store(out_ptr + 2 * N + at, lib.sign(a))
    tl.store(out_ptr + 3 * N + at, lib.floor(a.to(tl.float32) / 4.0))


@triton.jit
def signed_powers(out_ptr):
    at = tl.arange(0, 8)
    x = (at % 4).to(tl.float32) - 2.0  # -2 -1 0 1
    y = (at // 4).to(tl.float32) * 2.0 + 1.0  # 1, 3
    tl.store(out_ptr + at, lib.power(x, y))
    tl.store(out_ptr + 8 + at, lib.power(x, y + 0.5))


def errors() -> dict[str, float]:
    """The largest error of each function: relative above 1, absolute below."""
    n = 4096
    x = torch.linspace(-8.0, 8.0, n)
    out = torch.full((10, n), float("nan"))
    real_functions[(1,)](x, out, n)
    wide = x.double()
    exact = {
        "tanh": wide.tanh(),
        "sigmoid": wide.sigmoid(),
        "exp": wide.exp(),
        "log": wide.abs().log(),
        "power": wide.abs() ** (wide * 0.25),
        "fifth power": wide**5,
        "inverse square": wide**-2,
        "remainder": torch.remainder(wide, -1.5),
        "sin": wide.sin(),
        "cos far out": (wide * 131072).cos(),
    }
    found = {
        name: float(((out[row].double() - value).abs() / value.abs().clamp(min=1)).max())
        for row, (name, value) in enumerate(exact.items())
    }
    small = out[0].double()[wide.abs() < 0.3], wide.tanh()[wide.abs() < 0.3]
    found["tanh near 0, relative"] = float(((small[0] - small[1]) / small[1]).abs().max())

    a, b = torch.cartesian_prod(torch.arange(-32, 32), torch.cat((torch.arange(-8, 0), torch.arange(1, 9)))).T
    a, b = a.int().contiguous(), b.int().contiguous()
    ints = torch.full((4, len(a)), 99, dtype=torch.int32)
    int_functions[(1,)](a, b, ints, len(a))
    wanted = (
        torch.div(a, b, rounding_mode="floor"),
        torch.remainder(a, b),
        a.sign(),
        torch.div(a, 4, rounding_mode="floor"),
    )
    for name, got, right in zip(("floor_div", "floor_mod", "sign", "floor"), ints, wanted, strict=True):
        found[name] = float((got != right).sum())

    powers = torch.full((2, 8), 99.0)
    signed_powers[(1,)](powers)
    right = torch.tensor([-2.0, -1, 0, 1, -8, -1, 0, 1])
    torch.testing.assert_close(powers[0], right, rtol=1e-6, atol=0)
    nan = math.nan
    torch.testing.assert_close(powers[1], torch.tensor([nan, nan, 0, 1, nan, nan, 0, 1]), equal_nan=True)
    return found
