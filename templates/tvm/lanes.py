"""Numbers and short vectors of TIR: what the kernels of this folder compute with.

A :class:`Value` knows its element type and how many lanes it has; a scalar has one. Mixing a scalar with a vector
repeats the scalar. Vectors are explicit in the TIR, so that LLVM maps each onto registers as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import tirx
from tvm.ir import TensorLoad
from tvm.script.ir_builder import IRBuilder
from tvm.target.codegen import llvm_lookup_intrinsic_id
from tvm.tirx.script.builder import ir as T

Number: TypeAlias = "Value | int | float | bool"

features: ContextVar[frozenset[str]] = ContextVar("features", default=frozenset())
"""Of the processor that code is being made for, as LLVM names them."""

BYTES = {"int32": 4, "float32": 4, "int64": 8, "float64": 8}
FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A TIR expression with its element type (``float32``, ``int32``, ``bool``, ...) and number of lanes."""

    expr: Any
    type: str
    lanes: int = 1

    def __add__(self, other: Number) -> Value:
        return _binary(tirx.Add, self, other)

    def __radd__(self, other: Number) -> Value:
        return _binary(tirx.Add, self._like(other), self)

    def __sub__(self, other: Number) -> Value:
        return _binary(tirx.Sub, self, other)

    def __rsub__(self, other: Number) -> Value:
        return _binary(tirx.Sub, self._like(other), self)

    def __mul__(self, other: Number) -> Value:
        return _binary(tirx.Mul, self, other)

    def __rmul__(self, other: Number) -> Value:
        return _binary(tirx.Mul, self._like(other), self)

    def __truediv__(self, other: Number) -> Value:
        return _binary(tirx.Div, self, other)

    def __rtruediv__(self, other: Number) -> Value:
        return _binary(tirx.Div, self._like(other), self)

    def __floordiv__(self, other: Number) -> Value:
        return _floored(self, self._like(other))[0]

    def __mod__(self, other: Number) -> Value:
        return _floored(self, self._like(other))[1]

    def __neg__(self) -> Value:
        return self._like(0) - self if self.type not in FLOATS else self * -1.0

    def __and__(self, other: Number) -> Value:
        return _binary(tirx.And, self, other) if self.type == "bool" else _operator("bitwise_and", self, other)

    def __or__(self, other: Number) -> Value:
        return _binary(tirx.Or, self, other) if self.type == "bool" else _operator("bitwise_or", self, other)

    def __xor__(self, other: Number) -> Value:
        return _operator("bitwise_xor", self, other)

    def __invert__(self) -> Value:
        return Value(tirx.Not(self.expr), "bool", self.lanes)

    def __lshift__(self, other: Number) -> Value:
        return _operator("shift_left", self, other)

    def __rshift__(self, other: Number) -> Value:
        return _operator("shift_right", self, other)

    def __lt__(self, other: Number) -> Value:
        return _binary(tirx.LT, self, other, "bool")

    def __le__(self, other: Number) -> Value:
        return _binary(tirx.LE, self, other, "bool")

    def __gt__(self, other: Number) -> Value:
        return _binary(tirx.GT, self, other, "bool")

    def __ge__(self, other: Number) -> Value:
        return _binary(tirx.GE, self, other, "bool")

    def equals(self, other: Number) -> Value:
        """Lane by lane ``==``."""
        return _binary(tirx.EQ, self, other, "bool")

    def differs(self, other: Number) -> Value:
        """Lane by lane ``!=``; true of NaN."""
        return _binary(tirx.NE, self, other, "bool")

    def _like(self, other: Number) -> Value:
        return other if isinstance(other, Value) else constant(other, self.type)

    def to(self, type: str) -> Value:
        """Converted to another element type, as C does."""
        if type == self.type:
            return self
        if type == "bool":
            return self.differs(0)
        if self.type == "bool":
            return select(self, constant(1, type), constant(0, type))
        return Value(tirx.Cast(dtype_of(type, self.lanes), self.expr), type, self.lanes)

    def bits(self, type: str) -> Value:
        """The same bits read as another element type of the same size."""
        return Value(T.reinterpret(dtype_of(type, self.lanes), self.expr), type, self.lanes)

    def spread(self, lanes: int) -> Value:
        """A scalar repeated over ``lanes``; a vector of that length as it is."""
        if self.lanes == lanes:
            return self
        assert self.lanes == 1, f"{self.lanes} lanes where {lanes} are wanted"
        return Value(T.Broadcast(self.expr, lanes), self.type, lanes)

    def keep(self) -> Value:
        """Computed here, so that using it again does not compute it again.

        The value goes through a cell of memory, which LLVM dissolves: TVM's simplifier would otherwise substitute
        names by what they stand for, again and again, in time exponential in the length of a chain of them.
        """
        if isinstance(self.expr, tirx.Var | tirx.IntImm | tirx.FloatImm):
            return self
        if isinstance(self.expr, TensorLoad):
            return Value(T.Bind(self.expr), self.type, self.lanes)
        cell = tirx.decl_buffer((self.lanes,), self.type, scope="global")
        T.add_to_parent(tirx.AllocBuffer(cell))
        place = T.Ramp(0, 1, self.lanes) if self.lanes > 1 else tirx.const(0, "int32")
        T.add_to_parent(tirx.BufferStore(cell, self.expr, [place]))
        return Value(T.Bind(tirx.BufferLoad(cell, [place])), self.type, self.lanes)


def dtype_of(type: str, lanes: int) -> str:
    return type if lanes == 1 else f"{type}x{lanes}"


def constant(value: int | float | bool, type: str) -> Value:
    """A scalar."""
    return Value(tirx.const(value, type), type)


def ramp(lanes: int, start: Value | None = None, step: int = 1) -> Value:
    """``start, start + step, ...``; ``int32`` from 0 by default."""
    start = start or constant(0, "int32")
    if lanes == 1:
        return start
    return Value(T.Ramp(start.expr, tirx.const(step, start.type), lanes), start.type, lanes)


def _pair(a: Value, b: Number) -> tuple[Value, Value]:
    b = a._like(b)
    lanes = max(a.lanes, b.lanes)
    assert a.type == b.type, f"{a.type} with {b.type}"
    return a.spread(lanes), b.spread(lanes)


def _binary(node: Any, a: Value, b: Number, type: str | None = None) -> Value:
    a, b = _pair(a, b)
    return Value(node(a.expr, b.expr), type or a.type, a.lanes)


def _floored(a: Value, b: Value) -> tuple[Value, Value]:
    """Quotient and remainder rounded down; by a power of two that is known, shifts."""
    if isinstance(b.expr, tirx.IntImm) and (number := int(b.expr.value)) > 0 and number & (number - 1) == 0:
        return a >> (number.bit_length() - 1), a & (number - 1)
    a, b = a.keep(), b.keep()
    quotient = _binary(tirx.Div, a, b).keep()
    rest = (a - quotient * b).keep()
    over = (rest.differs(0) & ((rest ^ b) < 0)).keep()
    return quotient - over.to(a.type), select(over, rest + b, rest)


def _operator(name: str, a: Value, b: Number) -> Value:
    a, b = _pair(a, b)
    return Value(getattr(T, name)(a.expr, b.expr), a.type, a.lanes)


def select(condition: Value, yes: Value, no: Number) -> Value:
    """Lane by lane ``yes if condition else no``; both are evaluated."""
    no = yes._like(no)
    lanes = max(condition.lanes, yes.lanes, no.lanes)
    assert yes.type == no.type, f"{yes.type} with {no.type}"
    parts = (x.spread(lanes).expr for x in (condition, yes, no))
    return Value(tirx.Select(*parts), yes.type, lanes)


def maximum(a: Value, b: Number) -> Value:
    """The larger; a NaN in ``a`` stays."""
    b = a._like(b)
    return select(b > a, b, a)


def minimum(a: Value, b: Number) -> Value:
    """The smaller; a NaN in ``a`` stays."""
    b = a._like(b)
    return select(b < a, b, a)


_INTRINSICS: dict[str, Any] = {}


def intrinsic(name: str, *args: Value, type: str | None = None, lanes: int | None = None) -> Value:
    """A call of LLVM's intrinsic ``name`` on values of one length; typed as its first argument unless told."""
    if name not in _INTRINSICS:
        number = llvm_lookup_intrinsic_id(name)
        if not number:
            raise ValueError(f"LLVM has no intrinsic {name}")
        _INTRINSICS[name] = tirx.const(number, "uint32")
    wide = max(arg.lanes for arg in args)
    exprs = [arg.spread(wide).expr for arg in args]
    type, lanes = type or args[0].type, lanes or wide
    call = T.call_intrin(dtype_of(type, lanes), "tirx.call_llvm_pure_intrin", _INTRINSICS[name], *exprs)
    return Value(call, type, lanes)


def library(name: str, x: Value) -> Value:
    """The C library's function ``name``, lane by lane."""
    x = x.keep()
    parts = [lanes_of(x, [k]) if x.lanes > 1 else x for k in range(x.lanes)]
    return join([Value(T.call_pure_extern(x.type, name, part.expr), x.type) for part in parts])


def join(parts: Sequence[Value]) -> Value:
    """A vector of scalars."""
    if len(parts) == 1:
        return parts[0]
    at = [tirx.const(k, "int32") for k in range(len(parts))]
    return Value(tirx.Shuffle([part.expr for part in parts], at), parts[0].type, len(parts))


def flush_subnormals() -> Callable[[], None]:
    """Let this thread take subnormal numbers as 0, until what is returned is called: they cost 100 times as much.

    Elsewhere than on x86 nothing is done.
    """
    if "sse2" not in features.get():
        return lambda: None
    before, during = (Memory(T.alloc_buffer((1,), "int32"), "int32") for _ in range(2))
    _control("stmxcsr", before)
    during.store(0, before.load(0) | 0x8040)
    _control("ldmxcsr", during)
    return lambda: _control("ldmxcsr", before)


def _control(name: str, word: Memory) -> None:
    number = tirx.const(llvm_lookup_intrinsic_id(f"llvm.x86.sse.{name}"), "uint32")
    T.evaluate(T.call_intrin("void", "tirx.call_llvm_intrin", number, T.address_of(word.load(0).expr)))


def fma(a: Value, b: Number, c: Number) -> Value:
    """``a * b + c``, rounded once where the processor can."""
    if "sse2" in features.get() and "fma" not in features.get():
        return a * b + c
    return intrinsic("llvm.fma", a, a._like(b), a._like(c))


def any_lane(condition: Value) -> Value:
    """Whether any lane is true, as a scalar."""
    return _reduce_lanes("llvm.vector.reduce.or", condition)


def every_lane(condition: Value) -> Value:
    """Whether all lanes are true, as a scalar."""
    return _reduce_lanes("llvm.vector.reduce.and", condition)


def _reduce_lanes(name: str, condition: Value) -> Value:
    if condition.lanes == 1:
        return condition
    return intrinsic(name, condition.to("int32"), lanes=1).differs(0)


def sum_of_lanes(x: Value) -> Value:
    """The sum of the lanes, halves first."""
    return _fold_lanes(x, lambda a, b: a + b)


def max_of_lanes(x: Value) -> Value:
    """The largest lane."""
    return _fold_lanes(x, maximum)


def _fold_lanes(x: Value, combine: Any) -> Value:
    while x.lanes > 1:
        x, half = x.keep(), x.lanes // 2
        x = combine(lanes_of(x, range(half)), lanes_of(x, range(half, 2 * half)))
    return x


def lanes_of(x: Value, which: Sequence[int]) -> Value:
    """The lanes ``which`` of ``x``, in that order."""
    at = [tirx.const(k, "int32") for k in which]
    return Value(tirx.Shuffle([x.expr], at), x.type, len(at))


def vector_of(numbers: Sequence[int | float], type: str) -> Value:
    """A constant vector."""
    return join([constant(number, type) for number in numbers])


@dataclass(frozen=True, slots=True)
class Memory:
    """Elements of one type behind a pointer, numbered from 0."""

    buffer: Any
    type: str

    def load(self, at: Number, lanes: int = 1, step: int = 1) -> Value:
        """``lanes`` elements from ``at`` on, ``step`` apart; where ``at`` has lanes itself, the element at each."""
        index = at if isinstance(at, Value) else constant(at, "int32")
        if index.lanes == 1:
            index = ramp(lanes, index, step)
        elif self.type == "float32" and index.lanes == 16 and "avx512f" in features.get():
            return self._gather(index.to("int64").keep())
        return Value(tirx.BufferLoad(self.buffer, [index.expr]), self.type, index.lanes)

    def _gather(self, index: Value) -> Value:
        """The elements at 16 places, by the processor's instruction; LLVM would load them one by one."""
        name, halves = "llvm.x86.avx512.mask.gather.qps.512", []
        for first in (0, 8):
            nothing, every = constant(0.0, "float32").spread(8).expr, constant(True, "bool").spread(8).expr
            places = lanes_of(index, range(first, first + 8)).expr
            number, scale = tirx.const(llvm_lookup_intrinsic_id(name), "uint32"), tirx.const(4, "int32")
            arguments = (number, nothing, self.buffer.data, places, every, scale)
            halves.append(T.call_intrin("float32x8", "tirx.call_llvm_pure_intrin", *arguments))
        return Value(tirx.Shuffle(halves, [tirx.const(k, "int32") for k in range(16)]), "float32", 16)

    def store(self, at: Number, value: Value, step: int = 1) -> None:
        """Write the lanes of ``value`` from ``at`` on, ``step`` apart."""
        index = at if isinstance(at, Value) else constant(at, "int32")
        T.buffer_store(self.buffer, value.expr, [ramp(value.lanes, index, step).expr])


def pointer(address: Value, type: str, name: str) -> Memory:
    """The memory at an address held as an ``int64``."""
    handle = T.Bind(T.reinterpret("handle", address.expr))
    buffer = T.decl_buffer((1 << 62,), type, data=handle)
    IRBuilder.name(name, buffer)
    return Memory(buffer, type)


class Scratch:
    """Memory of one thread, handed out piece by piece; how much was wanted in all is known once all code is made."""

    def __init__(self, base: Any) -> None:
        self._base = base
        self._used = 0
        self.most = 0

    def take(self, size: int, type: str, name: str) -> Memory:
        """Room for ``size`` elements, at a multiple of 64 bytes."""
        at = self._used
        self._used += -(-size * BYTES[type] // 64) * 64
        self.most = max(self.most, self._used)
        handle = T.Bind(T.handle_add_byte_offset(self._base, at))
        buffer = T.decl_buffer((size,), type, data=handle)
        IRBuilder.name(name, buffer)
        return Memory(buffer, type)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """What is taken inside is free again afterwards."""
        used = self._used
        yield
        self._used = used


class Registers:
    """Some vectors that live in registers through a loop. Each is memory of its own, which LLVM dissolves."""

    def __init__(self, count: int, type: str, lanes: int, start: Value | None = None) -> None:
        self._lanes = lanes
        self._each = [Memory(T.alloc_buffer((lanes,), type, scope="global"), type) for _ in range(count)]
        for at in range(count):
            if start is not None:
                self[at] = start

    def __getitem__(self, at: int) -> Value:
        return self._each[at].load(0, self._lanes)

    def __setitem__(self, at: int, value: Value) -> None:
        self._each[at].store(0, value.spread(self._lanes))

    def __len__(self) -> int:
        return len(self._each)
