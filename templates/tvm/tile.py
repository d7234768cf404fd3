"""A tile of rows that walks over its visible keys, tile by tile: the order of things, whatever lies along the lanes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.lanes import any_lane, every_lane
from attnc.templates.tvm.memory import Memory, Registers, Scratch
from attnc.templates.tvm.pairs import pair_accumulate, pair_products
from attnc.templates.tvm.products import Rows, Shape, Source, index, widen
from attnc.templates.tvm.values import Value, constant, minimum, ramp
from attnc.templates.tvm.visible import bounds_of, cuts_of, known_of
from attnc.templates.tvm.walk import Product, RowSlots, Sizes, Slots, Sum, TaskSlots, Walk

Elements = Callable[[Value, int, int], Value]
"""From the number of a row or key within its tile, a start and a count of lanes to elements of its vector."""

LOWEST = {"float32": -3.4028234663852886e38, "float64": -1.7976931348623157e308}
"""Where a running maximum starts: finite, so that no difference of two is NaN."""


class Tile(ABC):
    """The code for one tile of rows.

    Attributes:
        rows: how many the queries and the sums of the tile have room for; a multiple of the lanes.
        planes: memory for a number of each pair of a tile of keys, at :meth:`place`.
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
    def place(self, n: Value, r: Value) -> Value:
        """Where in a plane the pair of key ``n`` and row ``r`` is."""

    @abstractmethod
    def strides(self, width: int) -> tuple[int, int]:
        """From row to row and from element to element of a sum."""

    @abstractmethod
    def _take_plane(self) -> Memory:
        """Memory for a plane."""

    @abstractmethod
    def _fill(self, queries: Memory, read: Elements, width: int) -> None:
        """Query vectors to memory, as :meth:`_multiply` wants them."""

    @abstractmethod
    def _compute(self, number: int, walk: Walk, j_lo: Value, count: Value, full: Value) -> None:
        """A tile of keys: :meth:`_products`, from them weights, and :meth:`_sums`; ``full``: the mask hides nothing."""

    @abstractmethod
    def _multiply(self, plane: Memory, queries: Memory, source: Source, width: int, count: Value) -> None:
        """A plane of dot products."""

    @abstractmethod
    def _accumulate(
        self, out: Memory, weights: Memory, source: Source, width: int, count: Value, scale: Memory | None
    ) -> None:
        """A rescaled sum, and to it the values of a tile of keys, weighted."""

    @abstractmethod
    def _by_row(self, total: Sum) -> Callable[[Value], Callable[[Value | int, int], Value]]:
        """Reads the elements of a sum of a row."""

    def _reads_once(self) -> Value | None:
        """Whether each key is read but once, if that can be."""
        return None

    def run(self) -> None:
        self.begin()
        self.walk()
        self.finish()

    def begin(self) -> None:
        """Take memory, and fill it with queries and with the state of rows that saw nothing yet."""
        shape = self.shape
        chunk = self.vectors * shape.lanes
        self.groups = ((self.count + (chunk - 1)) // chunk).keep()
        self.queries = [
            [self.take(p.width * self.rows, shape.type, "queries") for p in walk.products] for walk in self.slots.walks
        ]
        self.planes = [self._take_plane() for _ in range(max(walk.planes for walk in self.slots.walks))]
        self.scales = [
            self.take(shape.rows, shape.type, "scale") for _ in range(max(walk.shifts for walk in self.slots.walks))
        ]
        self.state: dict[str, Memory] = {}
        self.sums: dict[str, Memory] = {}
        self.seen = self.take(shape.rows, "int32", "seen")
        self._start()

    def walk(self) -> None:
        """Over the keys, once a pass."""
        for number, walk in enumerate(self.slots.walks):
            self._walk(number, walk)

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

                self._fill(self.queries[number][p], read, product.width)

    def _group(self, at: object) -> Rows:
        lanes = self.shape.lanes
        return Rows((index(at) * (self.vectors * lanes)).keep(), self.vectors, lanes)

    def _walk(self, number: int, walk: Walk) -> None:
        i_lo, i_hi = self._positions(constant(0, "int32"), self.count)
        bounds = bounds_of(self.task, self.sizes, i_lo, i_hi)
        cuts = cuts_of(bounds, self.sizes, self.shape.keys, self.shape.block)
        first, last = constant(0, "int32"), cuts.count
        if self.share is not None:
            part, parts = self.share
            first, last = (cuts.count * part // parts).keep(), (cuts.count * (part + 1) // parts).keep()
        with T.serial((last - first).expr) as at:
            j_lo, count = cuts.tile(first + index(at))
            wanted, full = None, constant(True, "bool")
            if self.slots.masked:
                wanted, full = known_of(self.task, bounds, i_lo, i_hi, j_lo, (j_lo + count - 1).keep())
            if wanted is None:
                self._visit(number, walk, j_lo, count, full)
            else:
                with T.If(wanted.expr), T.Then():
                    self._visit(number, walk, j_lo, count, full)

    def _positions(self, first: Value, count: Value) -> tuple[Value, Value]:
        """Of the first and the last of ``count`` rows of the tile, on the axis of the keys."""
        lo = (self.row + self.offset + first).keep()
        return lo, (lo + count - 1).keep()

    def _visit(self, number: int, walk: Walk, j_lo: Value, count: Value, full: Value) -> None:
        if not (self.slots.masked and self.slots.by_data):
            self._compute(number, walk, j_lo, count, full)
            return
        found = Memory(T.alloc_buffer((2,), "int32", scope="global"), "int32")
        with T.If(full.expr):
            with T.Then():
                for at in range(2):
                    found.store(at, constant(1, "int32"))
            with T.Else():
                for at, known in enumerate(self._look(number, j_lo, count)):
                    found.store(at, known.to("int32"))
        with T.If(found.load(0).differs(0).expr), T.Then():
            self._compute(number, walk, j_lo, count, found.load(1).differs(0).keep())

    def _look(self, number: int, j_lo: Value, count: Value) -> tuple[Value, Value]:
        """Whether any pair of the tile is visible, and whether all are."""
        shape = self.shape
        some = Registers(1, "int32", shape.lanes, constant(0, "int32"))
        every = Registers(1, "int32", shape.lanes, constant(1, "int32"))
        with T.serial(self.groups.expr) as at:
            rows = self._row_slots(number, self._group(at), {})
            with T.serial(count.expr) as key:
                here = self.task.at_key(number, (j_lo + index(key)).keep())
                for row in rows:
                    visible = row.pair(here, [], kept=False).visible().to("int32").keep()
                    some[0] = some[0] | visible
                    every[0] = every[0] & visible
        return any_lane(some[0].differs(0)), every_lane(every[0].differs(0))

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

    def _products(self, number: int, walk: Walk, j_lo: Value, count: Value) -> None:
        for p, product in enumerate(walk.products):
            self._product(number, p, product, j_lo, count)

    def _sums(self, number: int, walk: Walk, j_lo: Value, count: Value) -> None:
        for k, total in enumerate(walk.sums):
            self._sum(number, k, total, j_lo, count)

    def _product(self, number: int, p: int, product: Product, j_lo: Value, count: Value) -> None:
        plane = self.planes[p]
        if product.by_pair:

            def one(n: Value, r: Value) -> Value:
                return self.task.pair_product(number, p, self.row + r, (j_lo + n).keep())

            pair_products(plane, self.place, one, count, self.count)
            return

        def source(n: Value) -> tuple[Memory, Value]:
            return self.task.key(number, p, j_lo + n)

        def elements(n: Value, start: int, lanes: int) -> Value:
            return self.task.key_elements(number, p, (j_lo + n).keep(), start, lanes)

        def use(source: Source) -> None:
            self._multiply(plane, self.queries[number][p], source, product.width, count)

        self._with(product, source, elements, count, use)

    def _sum(self, number: int, k: int, total: Sum, j_lo: Value, count: Value) -> None:
        out, weights = self.sums[total.name], self.planes[total.plane]
        scale = None if total.shift is None else self.scales[total.shift]
        if total.by_pair:

            def read(n: Value, r: Value, start: int, lanes: int) -> Value:
                return self.task.pair_value(number, k, (self.row + r).keep(), (j_lo + n).keep(), start, lanes)

            def weight(n: Value, r: Value) -> Value:
                return weights.load(self.place(n, r))

            pair_accumulate(
                self.shape, out, self.strides(total.width), weight, read, total.width, count, self.count, scale
            )
            return

        def source(n: Value) -> tuple[Memory, Value]:
            return self.task.value(number, k, j_lo + n)

        def elements(n: Value, start: int, lanes: int) -> Value:
            return self.task.value_elements(number, k, (j_lo + n).keep(), start, lanes)

        def use(source: Source) -> None:
            self._accumulate(out, weights, source, total.width, count, scale)

        self._with(total, source, elements, count, use)

    def _with(
        self, of: Product | Sum, source: Source, elements: Elements, count: Value, use: Callable[[Source], None]
    ) -> None:
        """``use`` vectors where they lie, or a converted copy of their tile unless each is read but once."""
        if not of.convert:
            use(source)
            return

        def copied() -> None:
            with self.scratch.shared():
                copy = self.take(self.shape.keys * of.width, self.shape.type, "converted")
                widen(self.shape, copy, elements, of.width, count)
                use(lambda n: (copy, (n * of.width).to("int64")))

        once = self._reads_once() if of.placed else None
        if once is None:
            copied()
            return
        with T.If(once.expr):
            with T.Then():
                use(source)
            with T.Else():
                copied()
