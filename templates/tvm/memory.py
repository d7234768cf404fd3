"""Memory of a kernel: tensors, scratch memory, and cells that live in registers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.lanes import lanes_of
from attnc.templates.tvm.processor import features, prefetch, raw_intrinsic
from attnc.templates.tvm.values import Number, Value, constant, ramp

BYTES = {"int8": 1, "uint16": 2, "float16": 2, "int32": 4, "float32": 4, "int64": 8, "float64": 8}
LINE = 64
"""Bytes of a line of the cache."""


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
        elif self.type == "float32" and index.lanes % 16 == 0 and "avx512f" in features.get():
            return self._gather(index.to("int64").keep())
        return Value(tirx.BufferLoad(self.buffer, [index.expr]), self.type, index.lanes)

    def _gather(self, index: Value) -> Value:
        """The elements at so many places, by the processor's instruction; LLVM would load them one by one."""
        halves = []
        for first in range(0, index.lanes, 8):
            nothing, every = constant(0.0, "float32").spread(8).expr, constant(True, "bool").spread(8).expr
            places, scale = lanes_of(index, range(first, first + 8)).expr, tirx.const(4, "int32")
            arguments = (nothing, self.buffer.data, places, every, scale)
            halves.append(raw_intrinsic("llvm.x86.avx512.mask.gather.qps.512", "float32", 8, *arguments).expr)
        every = [tirx.const(k, "int32") for k in range(index.lanes)]
        return Value(tirx.Shuffle(halves, every), "float32", index.lanes)

    def prefetch(self, at: Value, width: int) -> None:
        """Ask for the cache lines of ``width`` elements, which may be none of this memory's."""
        for start in range(0, width, LINE // BYTES[self.type]):
            prefetch(T.address_of(self.load(at + start).expr))

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
