"""Tiles of vectors on their way from global to shared memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.cuda.block import Block, Shared, address, call
from attnc.templates.tvm.cuda.shape import Shape
from attnc.templates.tvm.memory import Memory
from attnc.templates.tvm.processor import device_function
from attnc.templates.tvm.values import Value, constant, minimum, select

CHUNK = 16
"""Bytes that are copied at once."""


@dataclass(frozen=True, slots=True)
class Source:
    """Vectors, one for each row (or key).

    Attributes:
        width: of a vector.
        element: the element of a row at a place, as ``float32``; the place is a number where not ``anywhere``.
        anywhere: whether an element can be asked for at a place that varies.
        where: the memory and place of the first element of a row, if rows may be copied as they are.
        aligned: whether they may, in this call.
    """

    width: int
    element: Callable[[Value, Any], Value]
    anywhere: bool = True
    where: Callable[[Value], tuple[Memory, Value]] | None = None
    aligned: Value | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of vectors in shared memory, ``pitch`` elements apart."""

    shape: Shape
    memory: Shared
    width: int
    rows: int

    @property
    def pitch(self) -> int:
        return self.shape.pitch(self.width)

    @property
    def padded(self) -> int:
        """How many elements of a row are multiplied; those beyond ``width`` are 0."""
        return self.shape.padded(self.width)

    def at(self, rows: Value) -> Tile:
        """The tile that lies so many rows on."""
        return Tile(self.shape, self.memory.at(rows * self.pitch), self.width, self.rows)

    def place(self, row: Value, column: Value | int) -> Value:
        return row * self.pitch + column

    def address(self, row: Value, column: Value | int) -> Any:
        return self.memory.address(self.place(row, column))

    def load(self, row: Value, column: Value | int) -> Value:
        """An element as ``float32``."""
        raw = self.memory.load(self.place(row, column))
        return (
            raw
            if self.memory.type == "float32"
            else device_function(f"attnc_from_{self.shape.element}", raw, type="float32")
        )

    def store(self, row: Value, column: Value | int, x: Value) -> None:
        """Round a ``float32`` and write it."""
        raw = (
            x if self.memory.type == "float32" else device_function(f"attnc_to_{self.shape.element}", x, type="uint16")
        )
        self.memory.store(self.place(row, column), raw)


def pad(block: Block, tile: Tile) -> None:
    """Zeros behind the vectors of a tile."""
    rest = tile.padded - tile.width
    if rest:
        with block.dealt(tile.rows * rest) as number:
            tile.store((number // rest).keep(), (number % rest + tile.width).keep(), constant(0.0, "float32"))


def copy(block: Block, tile: Tile, source: Source, first: Value, count: Value, last: Value) -> None:
    """Rows ``first`` and on of ``source`` to a tile: ``count`` of them, then zeros. No row beyond ``last`` is read.

    The copies may be under way afterwards: wait for them, and for the other threads.
    """
    if source.where is None or source.aligned is None:
        _by_element(block, tile, source, first, count, last)
        return
    with T.If(source.aligned.expr):
        with T.Then():
            _by_chunk(block, tile, source.where, first, count)
        with T.Else():
            _by_element(block, tile, source, first, count, last)


def _by_chunk(
    block: Block, tile: Tile, where: Callable[[Value], tuple[Memory, Value]], first: Value, count: Value
) -> None:
    """A row that does not exist is named, but none of its bytes are read."""
    step = CHUNK // tile.shape.bytes
    chunks = tile.width // step
    with block.dealt(tile.rows * chunks, unroll=True) as number:
        row, column = (number // chunks).keep(), (number % chunks * step).keep()
        memory, place = where((first + row).keep())
        size = select(row < count, constant(CHUNK, "int32"), 0)
        call("attnc_copy", tile.address(row, column), address(memory, place + column.to("int64")), size)


def _by_element(block: Block, tile: Tile, source: Source, first: Value, count: Value, last: Value) -> None:
    zero = constant(0.0, "float32")
    if source.anywhere:
        with block.dealt(tile.rows * source.width) as number:
            row, column = (number // source.width).keep(), (number % source.width).keep()
            x = source.element(minimum(first + row, last).keep(), column)
            tile.store(row, column, select(row < count, x, zero))
        return
    with block.dealt(tile.rows) as row:
        at = minimum(first + row, last).keep()
        for column in range(source.width):
            tile.store(row, column, select(row < count, source.element(at, column), zero))
