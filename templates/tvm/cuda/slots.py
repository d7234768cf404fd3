"""What a spec decides beyond :mod:`attnc.templates.tvm.walk` when its kernel is for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from attnc.templates.tvm.cuda.block import LocalScratch
from attnc.templates.tvm.cuda.copies import Source
from attnc.templates.tvm.values import Value
from attnc.templates.tvm.walk import TaskSlots, Walk

Elements = Callable[[Any, int], Value]
"""Elements of a sum of a row: ``(start, lanes) -> value``."""


class BlockTaskSlots(TaskSlots, Protocol):
    """One tile of rows of one head."""

    def query_source(self, walk: int, product: int) -> Source: ...

    def key_source(self, walk: int, product: int) -> Source: ...

    def value_source(self, walk: int, number: int) -> Source: ...

    def finish_element(
        self, row: Value, element: Value, seen: Value, state: dict[str, Value], sums: dict[str, Elements]
    ) -> None:
        """Write one element of the output; ``seen`` tells whether the row saw a key."""
        ...

    def finish_numbers(self, row: Value, seen: Value, state: dict[str, Value]) -> None:
        """Write what is a number a row."""
        ...


class BlockSlots(Protocol):
    """A spec.

    Attributes:
        masked, by_data: as in :class:`attnc.templates.tvm.walk.Slots`.
        output: elements of a row of the output.
        by_element: whether each element of the output can be computed by itself.
        wide: names of sums whose weights 16 bits may not hold.
    """

    masked: bool
    by_data: bool
    wide: frozenset[str]

    @property
    def output(self) -> int: ...

    @property
    def by_element(self) -> bool: ...

    @property
    def walks(self) -> Sequence[Walk]: ...

    def block_task(self, b: Value, h: Value, scratch: LocalScratch) -> BlockTaskSlots: ...
