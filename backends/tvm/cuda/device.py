"""Arguments of kernels on a GPU, and the kernels as functions of TIR."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from attnc.backends.tvm.arguments import SIZES, Layout
from attnc.backends.tvm.cuda.launches import LARGEST
from attnc.backends.tvm.emit import STORED, Emitter, Tensor
from attnc.templates.tvm import values
from attnc.templates.tvm.cuda.block import Block, LocalScratch
from attnc.templates.tvm.head import HEAD
from attnc.templates.tvm.memory import Scratch
from attnc.templates.tvm.processor import device_function, features
from attnc.templates.tvm.values import Value

KERNEL_LAUNCH = 2
"""TVM's number for functions that a host starts on a device."""
REAL = "float32"


class DeviceTensor(Tensor):
    """A tensor whose elements of 16 bits are converted by instructions of the GPU."""

    stored: ClassVar = {**STORED, "f16": "uint16"}

    def load(self, offset: Value, type: str, lanes: int = 1) -> Value:
        if self.dtype in ("bf16", "f16"):
            raw = self.memory.load(offset, lanes)
            return device_function(f"attnc_from_{self.dtype}", raw, type=REAL).to(type)
        return super().load(offset, type, lanes)

    def store(self, offset: Value, value: Value) -> None:
        if self.dtype in ("bf16", "f16"):
            self.memory.store(offset, device_function(f"attnc_to_{self.dtype}", value.to(REAL), type="uint16"))
        else:
            super().store(offset, value)


class _Words:
    """The arguments of a function, one for each word of a call."""

    def __init__(self, layout: Layout) -> None:
        self._words = [Value(T.arg(name, T.int64()), "int64") for name in names_of(layout)]

    def load(self, at: int) -> Value:
        return self._words[at - HEAD]


def names_of(layout: Layout) -> list[str]:
    """A name for each word of a call, without its head."""
    names = [*SIZES, *layout.extents, *(f"parameter{n}" for n in range(layout.parameters))]
    for tensor, rank in layout.tensors:
        plain = "".join(c if c.isalnum() else "_" for c in tensor)
        names += [plain, *(f"{plain}_stride{k}" for k in range(rank))]
    return [f"arg_{name}" for name in names]


class Tasks:
    """The threads of a grid as a parallel loop (:class:`attnc.templates.tvm.tasks.Tasks`)."""

    def __init__(self, block: Block) -> None:
        self._block = block

    @contextmanager
    def dealt(self, count: Value) -> Iterator[tuple[Value, Scratch]]:
        """The code for one of ``count`` tasks: its number, and its memory."""
        number = (self._block.number * self._block.threads + self._block.thread).keep()
        with T.If((number < count).expr), T.Then():
            yield number, LocalScratch()


def write_function(
    name: str,
    threads: int,
    layout: Layout,
    dtypes: Sequence[str],
    parameters: Sequence[str],
    body: Callable[[Emitter, Block], None],
) -> tuple[Any, int]:
    """A kernel called ``name``, and the bytes of shared memory of its blocks."""
    tokens = features.set(frozenset({"cuda"})), values.cells.set("local")
    try:
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name(name)
                words = _Words(layout)
                with (
                    T.launch_thread("blockIdx.x", LARGEST) as number,
                    T.launch_thread("threadIdx.x", threads) as thread,
                ):
                    tensors = {
                        tensor: DeviceTensor(tensor, dtype, rank, layout, words)
                        for (tensor, rank), dtype in zip(layout.tensors, dtypes, strict=True)
                    }
                    block = Block(number, thread, threads)
                    body(Emitter(layout, tensors, words, parameters, REAL, 1), block)
            function = builder.get()
    finally:
        features.reset(tokens[0])
        values.cells.reset(tokens[1])
    return function.with_attr("global_symbol", name).with_attr("calling_conv", KERNEL_LAUNCH), block.room
