"""A block of threads: who is who, what it shares, and calls of the library in ``library.cuh``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.memory import Memory, Scratch
from attnc.templates.tvm.products import index
from attnc.templates.tvm.values import Value

WARP = 32
GROUP = 16
"""Rows that a warp multiplies at once."""


BYTES = {"uint16": 2, "int32": 4, "float32": 4}


def call(name: str, *arguments: Any) -> None:
    """A call of a function of the library."""
    T.evaluate(T.call_extern("void", name, *(x.expr if isinstance(x, Value) else x for x in arguments)))


def synchronise() -> None:
    """Wait for all threads of the block."""
    call("__syncthreads")


def address(memory: Memory, at: Value | int) -> Any:
    """Of an element."""
    return T.address_of(memory.load(at).expr)


class Local:
    """Numbers of one thread: registers, where their places are known once loops are unrolled."""

    def __init__(self, count: int, type: str, start: Value | None = None) -> None:
        self.count, self.memory = count, Memory(T.alloc_buffer((count,), type, scope="local"), type)
        if start is not None:
            with T.unroll(count) as at:
                self.memory.store(index(at), start)

    def __getitem__(self, at: Value | int) -> Value:
        return self.memory.load(at)

    def __setitem__(self, at: Value | int, value: Value) -> None:
        self.memory.store(at, value)

    def address(self, at: Value | int = 0) -> Any:
        return address(self.memory, at)


class LocalScratch(Scratch):
    """Memory of a thread for vectors that are read out of order."""

    def __init__(self) -> None:
        super().__init__(None)

    def take(self, size: int, type: str, name: str) -> Memory:
        return Local(size, type).memory


class Block:
    """The block that a thread belongs to.

    Attributes:
        number: of the block in the grid.
        thread: number of the thread in the block; ``warp`` and ``lane`` of it.
        group, place: of the lane among the 8 groups of 4 that hold a row each.
        room: bytes of shared memory that were taken at most.
    """

    def __init__(self, number: Any, thread: Any, threads: int) -> None:
        self.threads = threads
        self.number, self.thread = Value(number, "int32"), Value(thread, "int32")
        self.warp, self.lane = (self.thread >> 5).keep(), (self.thread & 31).keep()
        self.group, self.place = (self.lane >> 2).keep(), (self.lane & 3).keep()
        self.room = self._used = 0
        self._base = T.alloc_buffer((1 << 20,), "int32", scope="shared.dyn")

    def take(self, size: int, type: str) -> Shared:
        """Shared memory for ``size`` elements, at a multiple of 16 bytes."""
        at, width = self._used, BYTES[type]
        self._used += -(-size * width // 16) * 16
        self.room = max(self.room, self._used)
        view = T.decl_buffer((1 << 24,), type, data=self._base.data, scope="shared.dyn")
        return Shared(Memory(view, type), at // width)

    @contextmanager
    def overlaid(self) -> Iterator[None]:
        """What is taken inside may be taken again afterwards."""
        used = self._used
        yield
        self._used = used

    @contextmanager
    def dealt(self, count: int, *, unroll: bool = False) -> Iterator[Value]:
        """The code for each number below ``count`` that is this thread's."""
        turns = -(-count // self.threads)
        with (T.unroll if unroll else T.serial)(turns) as turn:
            number = (index(turn) * self.threads + self.thread).keep()
            if count % self.threads == 0:
                yield number
            else:
                with T.If((number < count).expr), T.Then():
                    yield number


class Shared:
    """Elements in shared memory from ``start`` on."""

    def __init__(self, memory: Memory, start: int | Value) -> None:
        self._memory, self._start = memory, start
        self.type = memory.type

    def at(self, place: Value | int) -> Shared:
        """The same from a place on."""
        start = place + self._start if isinstance(place, Value) else self._start + place
        return Shared(self._memory, start)

    def load(self, at: Value | int) -> Value:
        return self._memory.load(at + self._start)

    def store(self, at: Value | int, value: Value) -> None:
        self._memory.store(at + self._start, value)

    def address(self, at: Value | int) -> Any:
        return address(self._memory, at + self._start)
