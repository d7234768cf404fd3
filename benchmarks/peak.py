"""What this machine's cores can do at most: multiply-adds without memory, products of matrices, reading memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

TURNS = 20_000
TASKS = 64


def peaks() -> dict[str, float]:
    """On as many threads as torch has: ``fma`` and ``matmul`` in GFLOP/s of float32, ``read`` in GB/s."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    read, size = reading()
    call, work = multiply_adds()
    return {
        "fma": work / best(call) / 1e9,
        "matmul": 2 * 2048**3 / best(lambda: a @ b) / 1e9,
        "read": size / best(read) / 1e9,
    }


@cache
def reading() -> tuple[Callable[[], object], int]:
    """A call that reads more memory than caches hold, and how many bytes."""
    memory = torch.ones(2**26)
    return memory.sum, memory.nbytes


def best(call: Callable[[], object], rounds: int = 7) -> float:
    """Seconds of the fastest of some calls."""
    call()
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


@cache
def multiply_adds() -> tuple[Callable[[], None], float]:
    """A call that keeps the multiply-add units of all threads busy, and how many operations it does."""
    from attnc.backends.protocol import Target
    from attnc.backends.tvm.package import import_tvm

    import_tvm()
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T

    from attnc.backends.tvm.arguments import ENTRY
    from attnc.backends.tvm.compile import _Built
    from attnc.backends.tvm.launch import launch
    from attnc.backends.tvm.machine import machine_of
    from attnc.templates.tvm.head import HEAD
    from attnc.templates.tvm.memory import Memory, Registers
    from attnc.templates.tvm.processor import features, fma
    from attnc.templates.tvm.tasks import Tasks
    from attnc.templates.tvm.values import constant

    machine = machine_of(Target("cpu"))
    features.set(machine.features)
    lanes, count = machine.vector_bytes // 4, machine.registers - 6
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(ENTRY)
            words = Memory(T.decl_buffer((1 << 62,), "int64", data=T.arg("call", T.handle())), "int64")
            tasks = Tasks(words)
            with tasks.dealt(words.load(HEAD).to("int32")) as (number, scratch):
                out = scratch.take(lanes, "float32", "out")
                sums = Registers(count, "float32", lanes, number.to("float32"))
                with T.serial(TURNS):
                    for k in range(count):
                        sums[k] = fma(sums[k], constant(0.999, "float32").spread(lanes), 0.001)
                total = sums[0]
                for k in range(1, count):
                    total = total + sums[k]
                out.store(0, total)
        function = builder.get().with_attr("global_symbol", ENTRY)
    run = _Built(function, machine).function()
    return lambda: launch(run, [0] * HEAD + [TASKS], 1, tasks.room), 2.0 * TASKS * TURNS * count * lanes


if __name__ == "__main__":
    print(peaks())
