"""Tile shapes of the kernels for Hopper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attnc.backends.triton.configs import SHARED_MEMORY, Config

_ROWS = 64
"""Of a group of four warps, as the instruction for matrix products wants it."""
_RESERVED = 1024
"""Bytes of shared memory for barriers and for reductions."""


@dataclass(frozen=True, slots=True)
class HopperConfig(Config):
    """``block_m`` is 64 rows a warpgroup, ``stages`` are slots of the ring of keys and values.

    ``queries`` is how many tiles of queries are held: with two, the next is copied while one is worked on.
    """

    queries: int

    @property
    def warpgroups(self) -> int:
        return self.block_m // _ROWS

    def shared(self, keys: int, values: int) -> int:
        """Bytes of shared memory, for so many lanes of keys and of values."""
        return 2 * (self.stages * self.block_n * (keys + values) + self.queries * self.block_m * keys) + _RESERVED

    @property
    def registers(self) -> tuple[int, int, int]:
        """Registers of a thread: of the warp that copies, of those that multiply, and of all when they start."""
        return {1: (40, 240, 232), 2: (24, 240, 168), 3: (32, 160, 128)}[self.warpgroups]


def hopper_candidates(keys: int, values: int, sums: int, by_lists: bool) -> Iterator[HopperConfig]:
    """Configurations to try in order, all of which fit the shared memory.

    Args:
        keys: lanes that a key takes in shared memory.
        values: lanes that a value takes in shared memory.
        sums: lanes of all accumulators of a row.
        by_lists: whether tiles are found by lists, which are made for tiles of a power of two rows.
    """
    shapes = [(3, 128)] if max(keys, sums) <= 64 and not by_lists else []
    shapes += [(2, 128)] if sums <= 192 else []
    for warpgroups, block_n in (*shapes, (2, 64), (2, 32)):
        for stages, queries in ((3, 2), (2, 2), (2, 1)):
            config = HopperConfig(warpgroups * _ROWS, block_n, 4, stages, queries)
            if config.shared(keys, values) <= SHARED_MEMORY["sm_90"]:
                yield config
                break
