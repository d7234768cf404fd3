"""Parallel loops: tasks that the threads of a call take one after the other.

A kernel is one C function of one pointer, which every thread of a call runs: it takes the next task from a counter
until none is left, so that threads need to know neither each other nor their number, and no thread waits while there
are tasks. A kernel with several loops, of which one reads what another wrote, has as many phases, each run by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.head import NEXT_TASK, NEXT_THREAD, PHASE, ROOM, SCRATCH
from attnc.templates.tvm.memory import Memory, Scratch
from attnc.templates.tvm.processor import BFLOAT16, features, flush_subnormals
from attnc.templates.tvm.values import Value

_TAKE = "attnc_take"
_LLVM = f"""
define linkonce_odr hidden i64 @{_TAKE}(ptr %counter) alwaysinline {{
  %taken = atomicrmw add ptr %counter, i64 1 monotonic
  ret i64 %taken
}}
"""


class Tasks:
    """The parallel loops of one kernel, given the integers of its call.

    Attributes:
        phases: how many loops there are so far.
        room: bytes of scratch memory that a thread needs for them.
    """

    def __init__(self, call: Memory) -> None:
        self.phases = 0
        self.room = 64
        self._call = call
        self._phase, self._scratch, self._each = (call.load(at).keep() for at in (PHASE, SCRATCH, ROOM))

    @contextmanager
    def dealt(self, count: Value) -> Iterator[tuple[Value, Scratch]]:
        """The code for one of ``count`` tasks: its number, and scratch memory of the thread that runs it."""
        text = _LLVM + (BFLOAT16 if "avx512bf16" in features.get() else "")
        with T.If(self._phase.equals(self.phases).expr), T.Then(), T.attr(0, "pragma_import_llvm", text):
            base = (self._scratch + self._each * self._take(NEXT_THREAD)).keep()
            scratch = Scratch(T.Bind(T.reinterpret("handle", base.expr)))
            restore = flush_subnormals()
            task = Memory(T.alloc_buffer((1,), "int64", scope="global"), "int64")
            task.store(0, self._take(NEXT_TASK))
            with T.While((task.load(0) < count.to("int64")).expr):
                yield task.load(0).to("int32").keep(), scratch
                task.store(0, self._take(NEXT_TASK))
            restore()
        self.phases += 1
        self.room = max(self.room, scratch.most)

    def _take(self, counter: int) -> Value:
        """The value of a counter, which goes up by one."""
        address = T.address_of(self._call.load(counter).expr)
        return Value(T.call_extern("int64", _TAKE, address), "int64")
