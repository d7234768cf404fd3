"""What the tuner may choose of a CPU kernel: how :class:`attnc.templates.tvm.products.Shape` cuts tiles."""

from __future__ import annotations

from attnc.backends.protocol import Choice, Config, Space, Target, Workload
from attnc.backends.tvm.machine import Machine, machine_of

CHOICES = (
    Choice("vectors", (1, 2, 3, 4)),
    Choice("block", (2, 4, 5, 6, 8, 10, 12, 14)),
    Choice("groups", (1, 2, 4, 8)),
    Choice("keys", (16, 32, 48, 60, 64, 80, 96, 128, 192, 256)),
)
FEWEST = 3
"""Accumulators must be independent enough to hide the latency of a multiply-add."""
ROWS = 64
"""Rows of a tile of float32, about: few enough that its queries, scores and sums lie in the first cache."""
CACHE = 512 * 1024
"""Bytes of the scores of a tile: they stay in the cache of a core."""


def default_of(machine: Machine) -> Config:
    """How tiles are cut where nothing was tuned."""
    lanes = machine.vector_bytes // 4
    vectors, block, keys = (4, 6, 96) if machine.registers >= 32 else (2, 6, 60)
    if lanes == 4 and machine.registers >= 32:
        block, keys = 5, 80  # NEON multiplies by an element of a vector, and LLVM holds four elements of each key
    return {"vectors": vectors, "block": block, "groups": max(1, ROWS // (vectors * lanes)), "keys": keys}


def space_of(workload: Workload, target: Target) -> Space:
    """The space of a kernel for the processor of ``target``."""
    machine = machine_of(target)

    def excluded(config: Config) -> str | None:
        vectors, block, groups, keys = (int(config[choice.name]) for choice in CHOICES)
        held = vectors * block
        if held + vectors + 1 > machine.registers:
            return f"{held} accumulators and {vectors} vectors of rows take more than {machine.registers} registers"
        if held < FEWEST:
            return f"{held} accumulators wait for each other"
        scores = groups * vectors * machine.vector_bytes * keys
        return f"the scores of a tile take {scores} bytes, over {CACHE}" if scores > CACHE else None

    return Space(CHOICES, default_of(machine), excluded)
