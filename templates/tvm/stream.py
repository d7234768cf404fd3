"""The ``stream`` and ``twopass`` families: tiles of rows, each walking over its visible keys tile by tile.

A task is one tile of query rows of one head; tasks are spread over the cores. What a spec decides comes in through
:class:`~attnc.templates.tvm.walk.Slots`; everything else, the order of loops, what lies in cache and when, is here.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.few import ROWS, few_accumulate, few_products, gather_rows
from attnc.templates.tvm.functions import exp
from attnc.templates.tvm.lanes import any_lane, every_lane
from attnc.templates.tvm.memory import Memory, Registers, Scratch
from attnc.templates.tvm.pairs import pair_accumulate, pair_products
from attnc.templates.tvm.products import Rows, Shape, Source, accumulate, index, products, widen
from attnc.templates.tvm.tasks import Tasks
from attnc.templates.tvm.transpose import transpose
from attnc.templates.tvm.values import Value, constant, maximum, minimum, ramp, select
from attnc.templates.tvm.walk import RowSlots, Sizes, Slots, Sum, TaskSlots, Walk

LOWEST = {"float32": -3.4028234663852886e38, "float64": -1.7976931348623157e308}
"""Where a running maximum starts: finite, so that no difference of two is NaN."""


def stream(shape: Shape, slots: Slots, sizes: Sizes, tasks: Tasks, *, few: bool = True) -> None:
    """The whole kernel: a parallel loop over tiles of rows, later rows first, since they often see more keys.

    ``few`` says whether there is code of its own for tiles of few rows, as in decoding.
    """
    tiles = ((sizes.M + (shape.rows - 1)) // shape.rows).keep()
    with tasks.dealt(sizes.B * sizes.H * tiles) as (task, scratch):
        head = (task // tiles).keep()
        row = ((tiles - 1 - task % tiles) * shape.rows).keep()
        count = minimum(sizes.M - row, shape.rows).keep()

        def tile(vectors: int, *, few: bool) -> None:
            with scratch.shared():
                task_slots = slots.task((head // sizes.H).keep(), (head % sizes.H).keep(), scratch)
                Tile(shape, slots, task_slots, sizes, scratch, row, count, vectors, few).run()

        if few:
            with T.If((count <= ROWS).expr):
                with T.Then():
                    tile(1, few=True)
                with T.Else():
                    tile(shape.vectors, few=False)
        else:
            tile(shape.vectors, few=False)


class Tile:
    """The code for one tile of rows, ``vectors`` row vectors at a time; ``few`` rows have products of their own."""

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
        few: bool = False,
    ) -> None:
        self.few = few
        self.shape, self.slots, self.task, self.sizes = shape, slots, task, sizes
        self.scratch, self.take = scratch, scratch.take
        self.row, self.count, self.vectors = row, count, vectors
        self.offset = (sizes.N - sizes.M).keep()

    def run(self) -> None:
        shape = self.shape
        chunk = self.vectors * shape.lanes
        self.groups = ((self.count + (chunk - 1)) // chunk).keep()
        self.queries = [
            [self.take(p.width * self._rows, shape.type, "queries") for p in walk.products] for walk in self.slots.walks
        ]
        planes = max(walk.planes for walk in self.slots.walks)
        deep = -(-shape.keys // shape.block) * shape.block
        self.planes = [self.take(deep * shape.rows, shape.type, "plane") for _ in range(planes)]
        self.scales = [
            self.take(shape.rows, shape.type, "scale") for _ in range(max(walk.shifts for walk in self.slots.walks))
        ]
        self.state: dict[str, Memory] = {}
        self.sums: dict[str, Memory] = {}
        self.seen = self.take(shape.rows, "int32", "seen")
        self._start()
        for number, walk in enumerate(self.slots.walks):
            self._walk(number, walk)
        self._finish()

    def _finish(self) -> None:
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
                self.sums[total.name] = self.take(total.width * self._rows, shape.type, total.name)
        maxima = {name for walk in self.slots.walks for name, _ in walk.maxima}
        with T.serial(shape.rows // shape.lanes) as at:
            first = index(at) * shape.lanes
            for name, memory in self.state.items():
                memory.store(first, lowest if name in maxima else zero)
            self.seen.store(first, constant(0, "int32").spread(shape.lanes))
        for total in (total for walk in self.slots.walks for total in walk.sums):
            with T.serial(total.width * self._rows // shape.lanes) as at:
                self.sums[total.name].store(index(at) * shape.lanes, zero)
        for number, walk in enumerate(self.slots.walks):
            for p, product in enumerate(walk.products):
                if product.by_pair:
                    continue

                def read(r: Value, start: int, lanes: int, number: int = number, p: int = p) -> Value:
                    return self.task.query(number, p, minimum(self.row + r, self.sizes.M - 1).keep(), start, lanes)

                queries = self.queries[number][p]
                if self.few:
                    gather_rows(shape, queries, read, product.width, self.count)
                    continue
                with self.scratch.shared():
                    by_row = self.take(product.width * shape.rows, shape.type, "rows")
                    gather_rows(shape, by_row, read, product.width, self.groups * (self.vectors * shape.lanes))
                    transpose(queries, by_row, shape.rows, product.width, shape.lanes)

    @property
    def _rows(self) -> int:
        """Rows that the queries and the sums of a tile have room for; a multiple of the lanes."""
        return -(-ROWS // self.shape.lanes) * self.shape.lanes if self.few else self.shape.rows

    def _by_row(self, total: Sum) -> Callable[[Value], Callable[[Value | int, int], Value]]:
        """Reads the elements of a sum of a row."""
        memory, shape = self.sums[total.name], self.shape
        if not self.few:
            memory = self.take(total.width * shape.rows, shape.type, "rows")
            transpose(memory, self.sums[total.name], total.width, shape.rows, shape.lanes)
        return lambda r: lambda start, lanes: memory.load(r * total.width + start, lanes)

    def _group(self, at: object) -> Rows:
        return Rows((index(at) * (self.vectors * self.shape.lanes)).keep(), self.vectors)

    def _walk(self, number: int, walk: Walk) -> None:
        shape, sizes = self.shape, self.sizes
        i_lo = (self.row + self.offset).keep()
        i_hi = (i_lo + self.count - 1).keep()
        bounds = [
            tuple(x.keep() for x in (maximum(lo, 0), minimum(hi, sizes.N), full_lo, full_hi))
            for lo, hi, full_lo, full_hi in self.task.ranges(i_lo, i_hi)
        ]
        if len(bounds) == 1:
            start, end = bounds[0][:2]
        else:
            start, end = sizes.N, constant(0, "int32")
            for lo, hi, _, _ in bounds:
                start = select(lo < hi, minimum(start, lo), start).keep()
                end = select(lo < hi, maximum(end, hi), end).keep()
        tiles = ((maximum(end - start, 0) + (shape.keys - 1)) // shape.keys).keep()
        with T.serial(tiles.expr) as at:
            j_lo = (start + index(at) * shape.keys).keep()
            count = minimum(end - j_lo, shape.keys).keep()
            j_hi = (j_lo + count - 1).keep()
            wanted = None if len(bounds) == 1 else constant(False, "bool")
            full = constant(not self.slots.masked, "bool")
            if self.slots.masked:
                for lo, hi, full_lo, full_hi in bounds:
                    if wanted is not None:
                        wanted = wanted | ((j_lo < hi) & (j_hi >= lo))
                    full = full | ((j_lo >= full_lo) & (j_hi < full_hi))
                if (known := self.task.full(i_lo, i_hi, j_lo, j_hi)) is not None:
                    full = full | known
                if (known := self.task.empty(i_lo, i_hi, j_lo, j_hi)) is not None:
                    wanted = ~known if wanted is None else wanted & ~known
            if wanted is None:
                self._visit(number, walk, j_lo, count, full.keep())
            else:
                with T.If(wanted.expr), T.Then():
                    self._visit(number, walk, j_lo, count, full.keep())

    def _visit(self, number: int, walk: Walk, j_lo: Value, count: Value, full: Value) -> None:
        if not (self.slots.masked and self.slots.by_data):
            self._compute(number, walk, j_lo, count, full)
            return
        found = Memory(T.alloc_buffer((2,), "int32", scope="global"), "int32")
        found.store(0, full.to("int32"))
        found.store(1, full.to("int32"))
        with T.If((~full).expr), T.Then():
            self._look(number, found, j_lo, count)
        with T.If(found.load(0).differs(0).expr), T.Then():
            self._compute(number, walk, j_lo, count, found.load(1).differs(0).keep())

    def _look(self, number: int, found: Memory, j_lo: Value, count: Value) -> None:
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
        found.store(0, any_lane(some[0].differs(0)).to("int32"))
        found.store(1, every_lane(every[0].differs(0)).to("int32"))

    def _row_slots(self, number: int, at: Rows, state: dict[str, Memory]) -> list[RowSlots]:
        shape = self.shape
        result = []
        for v in at.all:
            first = (at.first + v * shape.lanes).keep()
            row = minimum(ramp(shape.lanes, (self.row + first).keep()), (self.sizes.M - 1).spread(shape.lanes)).keep()
            values = {name: memory.load(first, shape.lanes).keep() for name, memory in state.items()}
            result.append(self.task.rows(number, row, values))
        return result

    def _compute(self, number: int, walk: Walk, j_lo: Value, count: Value, full: Value) -> None:
        shape = self.shape
        for p, product in enumerate(walk.products):
            if product.by_pair:

                def one(n: Value, r: Value, p: int = p) -> Value:
                    return self.task.pair_product(number, p, self.row + r, (j_lo + n).keep())

                pair_products(shape, self.planes[p], one, count, self.count)
                continue

            def source(n: Value, p: int = p) -> tuple[Memory, Value]:
                return self.task.key(number, p, j_lo + n)

            def elements(n: Value, start: int, lanes: int, p: int = p) -> Value:
                return self.task.key_elements(number, p, (j_lo + n).keep(), start, lanes)

            ready = self._ready(product.convert, source, elements, product.width, count)
            queries = self.queries[number][p]
            if self.few:
                few_products(shape, self.planes[p], queries, ready, product.width, count, self.count)
            else:
                with T.serial(self.groups.expr) as at:
                    products(shape, self.planes[p], queries, ready, product.width, count, self._group(at))
        if self.slots.masked:
            with T.If(full.expr):
                with T.Then():
                    self._weigh(number, walk, j_lo, count, masked=False)
                with T.Else():
                    self._weigh(number, walk, j_lo, count, masked=True)
        else:
            self._weigh(number, walk, j_lo, count, masked=False)
        for k, total in enumerate(walk.sums):
            out, weights = self.sums[total.name], self.planes[total.plane]
            scale = None if total.shift is None else self.scales[total.shift]
            if total.by_pair:

                def read(n: Value, r: Value, start: int, lanes: int, k: int = k) -> Value:
                    return self.task.pair_value(number, k, (self.row + r).keep(), (j_lo + n).keep(), start, lanes)

                place = (total.width, 1) if self.few else (1, shape.rows)
                pair_accumulate(shape, out, place, weights, read, total.width, count, self.count, scale)
                continue

            def source(n: Value, k: int = k) -> tuple[Memory, Value]:
                return self.task.value(number, k, j_lo + n)

            def elements(n: Value, start: int, lanes: int, k: int = k) -> Value:
                return self.task.value_elements(number, k, (j_lo + n).keep(), start, lanes)

            ready = self._ready(total.convert, source, elements, total.width, count)
            if self.few:
                few_accumulate(shape, out, weights, ready, total.width, count, self.count, scale)
            else:
                with T.serial(self.groups.expr) as at:
                    accumulate(shape, out, weights, ready, total.width, count, self._group(at), scale)

    def _ready(self, convert: bool, source: Source, elements: object, width: int, count: Value) -> Source:
        """``source``, or a converted copy of its tile."""
        if not convert:
            return source
        copy = self.take(self.shape.keys * width, self.shape.type, "converted")
        widen(self.shape, copy, elements, width, count)  # type: ignore[arg-type]
        return lambda n: (copy, (n * width).to("int64"))

    def _weigh(self, number: int, walk: Walk, j_lo: Value, count: Value, *, masked: bool) -> None:
        """From products to weights: grow the maxima, rescale, and add up the sums."""
        with T.serial(self.groups.expr) as at:
            rows = self._group(at)
            if walk.maxima:
                self._grow(number, walk, j_lo, count, rows, masked=masked)
            self._total(number, walk, j_lo, count, rows, masked=masked)

    def _before(self, number: int) -> dict[str, Memory]:
        """Statistics of this pass and earlier ones."""
        names = [name for walk in self.slots.walks[: number + 1] for name, _ in walk.maxima + walk.totals]
        return {name: self.state[name] for name in names}

    def _grow(self, number: int, walk: Walk, j_lo: Value, count: Value, at: Rows, *, masked: bool) -> None:
        shape = self.shape
        lowest = constant(LOWEST[shape.type], shape.type)
        slots = self._row_slots(number, at, self._before(number))
        best = Registers(len(walk.maxima) * at.vectors, shape.type, shape.lanes)
        for m, (name, _) in enumerate(walk.maxima):
            for v in at.all:
                best[m * at.vectors + v] = self.state[name].load(at.first + v * shape.lanes, shape.lanes)
        with T.serial(count.expr) as key:
            n = index(key)
            here = self.task.at_key(number, (j_lo + n).keep())
            for v in at.all:
                place = (n * shape.rows + at.first + v * shape.lanes).keep()
                planes = [self.planes[p].load(place, shape.lanes).keep() for p in range(len(walk.products))]
                pair = slots[v].pair(here, planes, kept=False)
                terms = list(pair.maxima())
                for m, (_, plane) in enumerate(walk.maxima):
                    if plane >= len(walk.products) or terms[m] is not planes[plane]:
                        self.planes[plane].store(place, terms[m].spread(shape.lanes))
                    term = select(pair.visible(), terms[m], lowest) if masked else terms[m]
                    best[m * at.vectors + v] = maximum(best[m * at.vectors + v], term)
        old = [list(row.shifts()) for row in slots]
        for m, (name, _) in enumerate(walk.maxima):
            for v in at.all:
                self.state[name].store(at.first + v * shape.lanes, best[m * at.vectors + v])
        new = [list(row.shifts()) for row in self._row_slots(number, at, self._before(number))]
        for v in at.all:
            for k in range(walk.shifts):
                scale = exp((old[v][k] - new[v][k]).keep()).spread(shape.lanes)
                self.scales[k].store(at.first + v * shape.lanes, scale)

    def _total(self, number: int, walk: Walk, j_lo: Value, count: Value, at: Rows, *, masked: bool) -> None:
        shape = self.shape
        zero = constant(0.0, shape.type)
        slots = self._row_slots(number, at, self._before(number))
        sums = Registers(len(walk.totals) * at.vectors, shape.type, shape.lanes, zero)
        seen = Registers(at.vectors, "int32", shape.lanes)
        for v in at.all:
            old = self.seen.load(at.first + v * shape.lanes, shape.lanes)
            seen[v] = old if masked else constant(1, "int32")
        with T.serial(count.expr) as key:
            n = index(key)
            here = self.task.at_key(number, (j_lo + n).keep())
            for v in at.all:
                place = (n * shape.rows + at.first + v * shape.lanes).keep()
                pair = slots[v].pair(
                    here, [plane.load(place, shape.lanes).keep() for plane in self.planes[: walk.planes]], kept=True
                )
                visible = pair.visible().keep() if masked else None
                if visible is not None:
                    seen[v] = seen[v] | visible.to("int32")
                terms = [*pair.totals(), *pair.weights()]
                if visible is not None:
                    terms = [select(visible, term, zero) for term in terms]
                terms = [term.keep() for term in terms]
                for t in range(len(walk.totals)):
                    sums[t * at.vectors + v] = sums[t * at.vectors + v] + terms[t]
                for total, term in zip(walk.sums, terms[len(walk.totals) :], strict=True):
                    self.planes[total.plane].store(place, term.spread(shape.lanes))
        for v in at.all:
            first = (at.first + v * shape.lanes).keep()
            self.seen.store(first, seen[v])
            for t, (name, shift) in enumerate(walk.totals):
                old = self.state[name].load(first, shape.lanes)
                if shift is not None:
                    old = old * self.scales[shift].load(first, shape.lanes)
                self.state[name].store(first, old + sums[t * at.vectors + v])
