"""The processor that code is made for: what it can do, and its instructions that TIR has no node for."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any

from tvm import tirx
from tvm.target.codegen import llvm_lookup_intrinsic_id
from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.values import Number, Value, dtype_of

features: ContextVar[frozenset[str]] = ContextVar("features", default=frozenset())
"""Of the processor that code is being made for, as LLVM names them; ``cuda`` for GPUs of NVIDIA."""


def intrinsic(name: str, *args: Value, type: str | None = None, lanes: int | None = None) -> Value:
    """A call of LLVM's intrinsic ``name`` on values of one length; typed as its first argument unless told."""
    if "cuda" in features.get():
        return device_function(name.removeprefix("llvm."), *args, type=type)
    wide = max(arg.lanes for arg in args)
    exprs = [arg.spread(wide).expr for arg in args]
    return raw_intrinsic(name, type or args[0].type, lanes or wide, *exprs)


def device_function(name: str, *args: Value, type: str | None = None) -> Value:
    """A call of a function of CUDA's C++, or of ours, on scalars."""
    assert all(arg.lanes == 1 for arg in args), "threads of a GPU have scalars"
    kind = type or args[0].type
    return Value(T.call_pure_extern(kind, name, *(arg.expr for arg in args)), kind)


def raw_intrinsic(name: str, type: str, lanes: int, *exprs: Any) -> Value:
    """A call of LLVM's intrinsic ``name`` on TIR expressions as they are."""
    call = T.call_intrin(dtype_of(type, lanes), "tirx.call_llvm_pure_intrin", _number(name), *exprs)
    return Value(call, type, lanes)


@cache
def _number(name: str) -> Any:
    number = llvm_lookup_intrinsic_id(name)
    if not number:
        raise ValueError(f"LLVM has no intrinsic {name}")
    return tirx.const(number, "uint32")


def fma(a: Value, b: Number, c: Number) -> Value:
    """``a * b + c``, rounded once where the processor can."""
    if "sse2" in features.get() and "fma" not in features.get():
        return a * b + c
    return intrinsic("llvm.fma", a, a._like(b), a._like(c))


def scale_by_powers(x: Value, n: Value) -> Value:
    """``x * 2**n`` by an instruction of AVX-512 for 16 lanes, right also where that overflows or underflows."""
    every, as_usual = tirx.const(-1, "int16"), tirx.const(4, "int32")  # of the lanes; it rounds

    def scale(x: Value, n: Value) -> Value:
        arguments = (x.expr, n.expr, x.expr, every, as_usual)
        return raw_intrinsic("llvm.x86.avx512.mask.scalef.ps.512", "float32", 16, *arguments)

    return by_registers(scale, x, n)


def by_registers(function: Callable[..., Value], *values: Value, lanes: int = 16) -> Value:
    """What ``function`` makes of each ``lanes`` lanes of some values, side by side."""
    whole = values[0].lanes
    if whole == lanes:
        return function(*values)
    kept = [value.keep() for value in values]
    parts = []
    for first in range(0, whole, lanes):
        at = [tirx.const(k, "int32") for k in range(first, first + lanes)]
        parts.append(function(*(Value(tirx.Shuffle([x.expr], at), x.type, lanes) for x in kept)).keep())
    every = [tirx.const(k, "int32") for k in range(whole)]
    return Value(tirx.Shuffle([part.expr for part in parts], every), parts[0].type, whole)


def quotient(a: Value, b: Value) -> Value:
    """``a / b`` for finite ``b``, to 1 ulp; with AVX-512 by a reciprocal: a division takes ten times as long."""
    if "avx512f" not in features.get() or b.lanes % 16:
        return a / b
    nothing, every = tirx.const(0.0, "float32"), tirx.const(-1, "int16")
    zeros = T.Broadcast(nothing, 16)

    def invert(x: Value) -> Value:
        return raw_intrinsic("llvm.x86.avx512.rcp14.ps.512", "float32", 16, x.expr, zeros, every)

    inverse = by_registers(invert, b).keep()
    near = (a * inverse).keep()
    return fma(fma(b * -1.0, near, a), inverse, near)


def flush_subnormals() -> Callable[[], None]:
    """Let this thread take subnormal numbers as 0, until what is returned is called: they cost 100 times as much.

    Elsewhere than on x86 nothing is done.
    """
    if "sse2" not in features.get():
        return lambda: None
    before, during = (T.alloc_buffer((1,), "int32") for _ in range(2))
    _control("stmxcsr", before)
    T.buffer_store(during, before[0] | 0x8040, [0])
    _control("ldmxcsr", during)
    return lambda: _control("ldmxcsr", before)


def prefetch(address: Any) -> None:
    """Ask for a line of memory, to read it soon."""
    read, soon, data = (tirx.const(x, "int32") for x in (0, 3, 1))
    T.evaluate(T.call_intrin("void", "tirx.call_llvm_intrin", _number("llvm.prefetch"), address, read, soon, data))


def _control(name: str, word: Any) -> None:
    T.evaluate(T.call_intrin("void", "tirx.call_llvm_intrin", _number(f"llvm.x86.sse.{name}"), T.address_of(word[0])))
