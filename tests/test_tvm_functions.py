"""The vector code for elementary functions against the C library in double."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from attnc.backends.protocol import Target
from attnc.backends.tvm.compile import lower_tir_to_llvm
from attnc.backends.tvm.machine import machine_of
from attnc.templates.tvm.lanes import constant

Array = np.ndarray[Any, np.dtype[Any]]
EXTREMES = [
    0.0,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    1e-45,
    -1e-45,
    1e-38,
    -1e-38,
    3e38,
    -3e38,
    1.0,
    -1.0,
    88.7,
    -103.9,
]


@cache
def compiled(name: str, type: str) -> Callable[[Array], Array]:
    """``name`` of the template's functions on arrays, 16 elements at a time."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T

    from attnc.templates.tvm.functions import UNARY, power
    from attnc.templates.tvm.lanes import Memory, pointer
    from attnc.templates.tvm.products import index

    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("attention")
            integers = T.arg("integers", T.handle())
            numbers = Memory(T.decl_buffer((8,), "int64", data=integers), "int64")
            source, target = pointer(numbers.load(1), type, "x"), pointer(numbers.load(2), type, "y")
            with T.serial(numbers.load(0).to("int32").expr) as at:
                x = source.load(index(at) * 16, 16).keep()
                made = power(x, constant(2.5, type)) if name == "power" else UNARY[name](x)
                target.store(index(at) * 16, made.spread(16))
        function = builder.get().with_attr("global_symbol", "attention")
    call = lower_tir_to_llvm(function, machine_of(Target("cpu")).options, packed=True)["attention"]

    def run(x: Array) -> Array:
        x = np.ascontiguousarray(np.resize(x, -(-len(x) // 16) * 16))
        y = np.full_like(x, 7)
        packed = (ctypes.c_int64 * 3)(len(x) // 16, x.ctypes.data, y.ctypes.data)
        call(ctypes.c_void_p(ctypes.addressof(packed)))
        return y

    return run


def exact(name: str, x: Array) -> Array:
    wide = x.astype(np.longdouble if x.dtype == np.float64 else np.float64)
    formulas: dict[str, Callable[[Array], Array]] = {
        "rsqrt": lambda a: 1 / np.sqrt(a),
        "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
        "erf": np.vectorize(math.erf),
        "power": lambda a: a**2.5,
    }
    with np.errstate(all="ignore"):
        return formulas.get(name, getattr(np, name, None))(wide)  # type: ignore[misc]


def ulps(found: Array, wanted: Array) -> float:
    """The largest distance in units of the last place of ``found``'s type; subnormals count as the smallest unit."""
    with np.errstate(all="ignore"):
        near = wanted.astype(found.dtype)
    same = (found == near) | (np.isnan(found) & np.isnan(near))
    with np.errstate(all="ignore"):
        unit = np.spacing(np.abs(near)).astype(wanted.dtype)
        distance = np.abs(found.astype(wanted.dtype) - wanted) / unit
    distance[same] = 0
    assert not np.isnan(distance).any(), (found[np.isnan(distance)], wanted[np.isnan(distance)])
    return float(distance.max())


RANGES = {
    "exp": (-87.3, 88.7, 2.0),
    "log": (0, 1e3, 2.0),
    "sqrt": (0, 1e6, 0.51),
    "rsqrt": (1e-6, 1e6, 2.0),
    "sigmoid": (-80, 80, 3.0),
    "tanh": (-12, 12, 3.0),
    "erf": (-5, 5, 3.0),
    "sin": (-1e5, 1e5, 3.0),
    "cos": (-1e5, 1e5, 3.0),
    "power": (0, 1e4, 1.0),
}


@pytest.mark.parametrize("name", list(RANGES))
def test_accuracy_in_float32(name: str, seed: int) -> None:
    low, high, most = RANGES[name]
    random = np.random.default_rng(seed)
    around_zero = random.standard_normal(20000) * 10.0 ** random.integers(-8, 1, 20000)
    x = np.concatenate([random.uniform(low, high, 100000), around_zero]).astype(np.float32)
    if low >= 0:
        x = np.abs(x)
    assert ulps(compiled(name, "float32")(x)[: len(x)], exact(name, x)) <= most


@pytest.mark.parametrize("name", [name for name in RANGES if name not in ("sin", "cos", "power")])
def test_extremes_in_float32(name: str) -> None:
    """Infinities, NaN, zeros and subnormals give what the C library gives; ``sigmoid`` may underflow to 0."""
    x = np.array(EXTREMES, np.float32)
    with np.errstate(all="ignore"):
        found, wanted = compiled(name, "float32")(x)[: len(x)], exact(name, x).astype(np.float32)
    np.testing.assert_allclose(found, wanted, rtol=4e-7, atol=1e-38)


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_a_wave_has_no_value_at_infinity(name: str) -> None:
    x = np.array([math.inf, -math.inf, math.nan, 0.0], np.float32)
    found = compiled(name, "float32")(x)[:4]
    assert np.isnan(found[:3]).all()
    assert found[3] == exact(name, x)[3]


@pytest.mark.parametrize("name", list(RANGES))
def test_accuracy_in_float64(name: str, seed: int) -> None:
    low, high, _ = RANGES[name]
    x = np.random.default_rng(seed).uniform(low, high, 4000)
    wanted = exact(name, x)
    found = compiled(name, "float64")(x)[: len(x)]
    np.testing.assert_allclose(found, wanted.astype(np.float64), rtol=4e-15, atol=1e-300)
