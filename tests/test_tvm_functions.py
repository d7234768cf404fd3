"""The vector code for elementary functions against the C library in double, and of transposing against numpy."""

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
from attnc.templates.tvm.processor import features
from attnc.templates.tvm.values import constant

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


def compiled(write: Callable[[Any], None], without: str = "") -> Callable[..., None]:
    """A function of some addresses, whose code ``write`` makes, given the memory they stand in.

    ``without`` names a feature of the processor that is not used.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T

    from attnc.templates.tvm.memory import Memory

    machine = machine_of(Target("cpu"))
    features.set(machine.features - {without})
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("attention")
            write(Memory(T.decl_buffer((8,), "int64", data=T.arg("words", T.handle())), "int64"))
        function = builder.get().with_attr("global_symbol", "attention")
    call = lower_tir_to_llvm(function, machine.options, packed=True)["attention"]

    def run(*words: int) -> None:
        packed = (ctypes.c_int64 * len(words))(*words)
        call(ctypes.c_void_p(ctypes.addressof(packed)))

    return run


@cache
def function(name: str, type: str, without: str = "") -> Callable[[Array], Array]:
    """``name`` of the template's functions on arrays, 16 elements at a time."""
    from tvm.tirx.script.builder import ir as T

    from attnc.templates.tvm.functions import UNARY, power
    from attnc.templates.tvm.memory import pointer
    from attnc.templates.tvm.products import index

    def write(words: Any) -> None:
        source, target = pointer(words.load(1), type, "x"), pointer(words.load(2), type, "y")
        with T.serial(words.load(0).to("int32").expr) as at:
            x = source.load(index(at) * 16, 16).keep()
            made = power(x, constant(2.5, type)) if name == "power" else UNARY[name](x)
            target.store(index(at) * 16, made.spread(16))

    call = compiled(write, without)

    def run(x: Array) -> Array:
        x = np.ascontiguousarray(np.resize(x, -(-len(x) // 16) * 16))
        y = np.full_like(x, 7)
        call(len(x) // 16, x.ctypes.data, y.ctypes.data)
        return y

    return run


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 40), (7, 1), (1, 5), (13, 30)])
def test_transpose(height: int, width: int, lanes: int, seed: int) -> None:
    from attnc.templates.tvm.memory import pointer
    from attnc.templates.tvm.transpose import transpose

    def write(words: Any) -> None:
        source, target = pointer(words.load(0), "float32", "x"), pointer(words.load(1), "float32", "y")
        transpose(target, source, height, width, lanes)

    x = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    y = np.full((width, height), np.nan, np.float32)
    compiled(write)(x.ctypes.data, y.ctypes.data)
    np.testing.assert_array_equal(y, x.T)


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
    "tanh": (-12, 12, 3.5),
    "erf": (-5, 5, 3.0),
    "sin": (-1e5, 1e5, 3.0),
    "cos": (-1e5, 1e5, 3.0),
    "power": (0, 1e4, 1.0),
}


@pytest.mark.parametrize("without", ["", "avx512f"])
def test_exp_is_right_to_a_unit_in_the_last_place(without: str) -> None:
    x = np.linspace(-87.3, 88.7, 2**20, dtype=np.float32)
    assert ulps(function("exp", "float32", without)(x)[: len(x)], exact("exp", x)) <= 1.0


@pytest.mark.parametrize("name", list(RANGES))
def test_accuracy_in_float32(name: str, seed: int) -> None:
    low, high, most = RANGES[name]
    random = np.random.default_rng(seed)
    around_zero = random.standard_normal(20000) * 10.0 ** random.integers(-8, 1, 20000)
    x = np.concatenate([random.uniform(low, high, 100000), around_zero]).astype(np.float32)
    if low >= 0:
        x = np.abs(x)
    assert ulps(function(name, "float32")(x)[: len(x)], exact(name, x)) <= most


@pytest.mark.parametrize("name", [name for name in RANGES if name not in ("sin", "cos", "power")])
def test_extremes_in_float32(name: str) -> None:
    """Infinities, NaN, zeros and subnormals give what the C library gives; ``sigmoid`` may underflow to 0."""
    x = np.array(EXTREMES, np.float32)
    with np.errstate(all="ignore"):
        found, wanted = function(name, "float32")(x)[: len(x)], exact(name, x).astype(np.float32)
    np.testing.assert_allclose(found, wanted, rtol=4e-7, atol=1e-38)


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_a_wave_has_no_value_at_infinity(name: str) -> None:
    x = np.array([math.inf, -math.inf, math.nan, 0.0], np.float32)
    found = function(name, "float32")(x)[:4]
    assert np.isnan(found[:3]).all()
    assert found[3] == exact(name, x)[3]


@pytest.mark.parametrize("name", list(RANGES))
def test_accuracy_in_float64(name: str, seed: int) -> None:
    low, high, _ = RANGES[name]
    x = np.random.default_rng(seed).uniform(low, high, 4000)
    wanted = exact(name, x)
    found = function(name, "float64")(x)[: len(x)]
    np.testing.assert_allclose(found, wanted.astype(np.float64), rtol=4e-15, atol=1e-300)
