"""How kernels are started: what bundles hold of them beside their code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LARGEST = 2**31 - 2**16


class SizeError(ValueError):
    """A size beyond what the kernels count with."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel of a call.

    Attributes:
        function: its name.
        threads: of a block.
        shared: bytes of shared memory of a block.
        grid: factors of the number of blocks: the product of some sizes by name, divided by a number and rounded up.
    """

    function: str
    threads: int
    shared: int
    grid: tuple[tuple[tuple[str, ...], int], ...]

    def blocks(self, sizes: Mapping[str, int]) -> int:
        """How many blocks a call of these sizes has.

        Raises:
            SizeError: there are more than a launch can have, or than 32 bits count.
        """
        counts = [(math.prod(sizes[name] for name in names), by) for names, by in self.grid]
        blocks = math.prod(-(-count // by) for count, by in counts)
        if max(blocks, *(count for count, _ in counts)) > LARGEST:
            raise SizeError(f"{self.function} of sizes {dict(sizes)} is beyond the {LARGEST} that kernels count to")
        return blocks
