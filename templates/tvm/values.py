"""Numbers and short vectors of TIR: what the kernels of this folder compute with.

A :class:`Value` knows its element type and how many lanes it has; a scalar has one. Mixing a scalar with a vector
repeats the scalar. Vectors are explicit in the TIR, so that LLVM maps each onto registers as it stands.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import tirx
from tvm.ir import TensorLoad
from tvm.tirx.script.builder import ir as T

Number: TypeAlias = "Value | int | float | bool"

cells: ContextVar[str] = ContextVar("cells", default="global")
"""Where numbers of one thread lie in code that is being made: ``global``, or ``local`` on a GPU."""

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
        names by what they stand for, again and again, in time exponential in the length of a chain of them. Code for
        GPUs is not simplified: it has the name at once.
        """
        if isinstance(self.expr, tirx.Var | tirx.IntImm | tirx.FloatImm):
            return self
        if isinstance(self.expr, TensorLoad) or cells.get() == "local":
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
