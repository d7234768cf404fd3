"""What a tile of rows holds while it walks over its keys: queries, planes, statistics, sums; and how it is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.memory import Memory, Scratch
from attnc.templates.tvm.products import Rows, Shape, index
from attnc.templates.tvm.values import Value, constant, minimum, ramp
from attnc.templates.tvm.walk import Product, RowSlots, Sizes, Slots, Sum, TaskSlots

Elements = Callable[[Value, int, int], Value]
"""From the number of a row or key within its tile, a start and a count of lanes to elements of its vector."""

LOWEST = {"float32": -3.4028234663852886e38, "float64": -1.7976931348623157e308}
"""Where a running maximum starts: finite, so that no difference of two is NaN."""


class State(ABC):
    """The memory of one tile of rows.

    Attributes:
        rows: how many the queries and the sums of the tile have room for; a multiple of the lanes.
        planes: memory for a number of each pair of a tile of keys.
        share: which part of how many of the tiles of keys it walks over, if not over all.
    """

    def __init__(
        self,
        shape: Shape,
        slots: Slots,
        task: TaskSlots,
        sizes: Sizes,
        scratch: Scratch,
        row: Value,
        count: Value,
        vectors: int,
        rows: int,
        share: tuple[Value, Value] | None = None,
    ) -> None:
        self.shape, self.slots, self.task, self.sizes = shape, slots, task, sizes
        self.scratch, self.take = scratch, scratch.take
        self.row, self.count, self.vectors, self.rows = row, count, vectors, rows
        self.share = share
        self.offset = (sizes.N - sizes.M).keep()

    @abstractmethod
    def _take_plane(self) -> Memory:
        """Memory for a plane."""

    @abstractmethod
    def _fill(self, queries: Memory, read: Elements, product: Product) -> None:
        """Query vectors to memory, as :meth:`_multiply` wants them."""

    @abstractmethod
    def _by_row(self, total: Sum) -> Callable[[Value], Callable[[Value | int, int], Value]]:
        """Reads the elements of a sum of a row."""

    def begin(self) -> None:
        """Take memory, and fill it with queries and with the state of rows that saw nothing yet."""
        shape = self.shape
        chunk = self.vectors * shape.lanes
        self.groups = ((self.count + (chunk - 1)) // chunk).keep()
        self.queries = [[self._take_queries(product) for product in walk.products] for walk in self.slots.walks]
        self.planes = [self._take_plane() for _ in range(max(walk.planes for walk in self.slots.walks))]
        self.scales = [
            self.take(shape.rows, shape.type, "scale") for _ in range(max(walk.shifts for walk in self.slots.walks))
        ]
        self.state: dict[str, Memory] = {}
        self.sums: dict[str, Memory] = {}
        self.seen = self.take(shape.rows, "int32", "seen")
        self._start()

    def finish(self) -> None:
        """Write the results."""
        with self.scratch.shared():
            sums = {total.name: self._by_row(total) for walk in self.slots.walks for total in walk.sums}
            with T.serial(self.count.expr) as at:
                r = index(at)
                row = (self.row + r).keep()
                with T.If(self.seen.load(r).differs(0).expr):
                    with T.Then():
                        state = {name: memory.load(r).keep() for name, memory in self.state.items()}
                        self.task.finish(row, state, {name: read(r) for name, read in sums.items()})
                    with T.Else():
                        self.task.nothing(row)

    def _take_queries(self, product: Product) -> Memory:
        return self.take(product.width * self.rows, self.shape.type, "queries")

    def _start(self) -> None:
        shape = self.shape
        zero = constant(0.0, shape.type).spread(shape.lanes)
        lowest = constant(LOWEST[shape.type], shape.type).spread(shape.lanes)
        for walk in self.slots.walks:
            for name, _ in walk.maxima + walk.totals:
                self.state[name] = self.take(shape.rows, shape.type, name)
            for total in walk.sums:
                self.sums[total.name] = self.take(total.width * self.rows, shape.type, total.name)
        maxima = {name for walk in self.slots.walks for name, _ in walk.maxima}
        with T.serial(shape.rows // shape.lanes) as at:
            first = index(at) * shape.lanes
            for name, memory in self.state.items():
                memory.store(first, lowest if name in maxima else zero)
            self.seen.store(first, constant(0, "int32").spread(shape.lanes))
        for total in (total for walk in self.slots.walks for total in walk.sums):
            with T.serial(total.width * self.rows // shape.lanes) as at:
                self.sums[total.name].store(index(at) * shape.lanes, zero)
        for number, walk in enumerate(self.slots.walks):
            for p, product in enumerate(walk.products):
                if product.by_pair:
                    continue

                def read(r: Value, start: int, lanes: int, number: int = number, p: int = p) -> Value:
                    return self.task.query(number, p, minimum(self.row + r, self.sizes.M - 1).keep(), start, lanes)

                self._fill(self.queries[number][p], read, product)

    def _group(self, at: object) -> Rows:
        lanes = self.shape.lanes
        return Rows((index(at) * (self.vectors * lanes)).keep(), self.vectors, lanes)

    def _positions(self, first: Value, count: Value) -> tuple[Value, Value]:
        """Of the first and the last of ``count`` rows of the tile, on the axis of the keys."""
        lo = (self.row + self.offset + first).keep()
        return lo, (lo + count - 1).keep()

    def _row_slots(self, number: int, at: Rows, state: dict[str, Memory]) -> list[RowSlots]:
        result = []
        for v in at.all:
            first = at.place(v).keep()
            row = minimum(ramp(at.lanes, (self.row + first).keep()), (self.sizes.M - 1).spread(at.lanes)).keep()
            values = {name: memory.load(first, at.lanes).keep() for name, memory in state.items()}
            result.append(self.task.rows(number, row, values))
        return result

    def _before(self, number: int) -> dict[str, Memory]:
        """Statistics of this pass and earlier ones."""
        names = [name for walk in self.slots.walks[: number + 1] for name, _ in walk.maxima + walk.totals]
        return {name: self.state[name] for name in names}
