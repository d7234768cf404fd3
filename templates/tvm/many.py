"""Tiles of many rows, which lie along the lanes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.functions import exp
from attnc.templates.tvm.lanes import every_lane, max_of_lanes, min_of_lanes
from attnc.templates.tvm.memory import Memory, Registers
from attnc.templates.tvm.products import Keys, Rows, Shape, Source, accumulate, gather_rows, index, products
from attnc.templates.tvm.tile import LOWEST, Elements, Tile
from attnc.templates.tvm.transpose import transpose
from attnc.templates.tvm.values import Value, constant, maximum, minimum, select
from attnc.templates.tvm.visible import bounds_of, hull_of
from attnc.templates.tvm.walk import Sum, Walk

JOINT = 4
"""Vectors whose numbers are computed side by side: a processor does not look far enough ahead to start the next one."""


class ManyRows(Tile):
    """Planes are ``[key, row]``, queries and sums ``[element, row]``.

    Where the mask hides some pairs of a tile of keys, an edge, each group of rows works on a span of its keys alone.

    Attributes:
        joint: how many vectors are computed side by side.
        reads_every_pair: weights are read of pairs too that no group of rows looks at.
        edge: code is being made for an edge.
    """

    joint = JOINT
    reads_every_pair = False
    edge = False

    def _start(self) -> None:
        self._ask()
        super()._start()
        self.spans = self.take(2 * (self.shape.rows // self.shape.lanes), "int32", "spans")
        self.reads_every_pair |= any(total.by_pair for walk in self.slots.walks for total in walk.sums)

    def place(self, n: Value, r: Value) -> Value:
        return n * self.shape.rows + r

    def strides(self, width: int) -> tuple[int, int]:
        return 1, self.shape.rows

    def _take_plane(self) -> Memory:
        deep = -(-self.shape.keys // self.shape.block) * self.shape.block + self.shape.block
        return self.take(deep * self.shape.rows, self.shape.type, "plane")

    def _fill(self, queries: Memory, read: Elements, width: int) -> None:
        shape = self.shape
        with self.scratch.shared():
            by_row = self.take(width * shape.rows, shape.type, "rows")
            gather_rows(shape, by_row, read, width, self.groups * (self.vectors * shape.lanes))
            transpose(queries, by_row, shape.rows, width, shape.lanes)

    def _by_row(self, total: Sum) -> Callable[[Value], Callable[[Value | int, int], Value]]:
        memory = self.take(total.width * self.shape.rows, self.shape.type, "rows")
        transpose(memory, self.sums[total.name], total.width, self.shape.rows, self.shape.lanes)
        return lambda r: lambda start, lanes: memory.load(r * total.width + start, lanes)

    def _ask(self) -> None:
        """Ask for the first tile of keys and values, which come while the queries are laid out."""
        start, end = hull_of(
            bounds_of(self.task, self.sizes, *self._positions(constant(0, "int32"), self.count)), self.sizes
        )
        walk = self.slots.walks[0]
        with T.serial(maximum(minimum(end - start, self.shape.keys), 0).expr) as number:
            j = (start + index(number)).keep()
            for p, product in enumerate(walk.products):
                if product.placed:
                    memory, offset = self.task.key(0, p, j)
                    memory.prefetch(offset, product.width)
            for k, total in enumerate(walk.sums):
                if total.placed:
                    memory, offset = self.task.value(0, k, j)
                    memory.prefetch(offset, total.width)

    def _compute(self, number: int, walk: Walk, j_lo: Value, count: Value, full: Value) -> None:
        if not self.slots.masked:
            self._work(number, walk, j_lo, count, masked=False)
            return
        with T.If(full.expr):
            with T.Then():
                self._work(number, walk, j_lo, count, masked=False)
            with T.Else():
                if not self.slots.by_data:
                    self._find_spans(j_lo, count)
                self.edge = True
                self._work(number, walk, j_lo, count, masked=True)
                self.edge = False

    def _work(self, number: int, walk: Walk, j_lo: Value, count: Value, *, masked: bool) -> None:
        self._products(number, walk, j_lo, count)
        with self._groups(count) as (rows, keys):
            if not masked:
                rows = rows.joined(self.joint)
            if walk.maxima:
                self._grow(number, walk, j_lo, keys, rows, masked=masked)
            self._total(number, walk, j_lo, keys, rows, masked=masked)
        if self.edge and self.reads_every_pair:
            self._blank(walk, count)
        self._sums(number, walk, j_lo, count)

    def _multiply(self, plane: Memory, queries: Memory, source: Source, width: int, count: Value) -> None:
        with self._groups(count) as (rows, keys):
            products(self.cut, plane, queries, source, width, keys, rows)

    def _accumulate(
        self, out: Memory, weights: Memory, source: Source, width: int, count: Value, scale: Memory | None
    ) -> None:
        with self._groups(count) as (rows, keys):
            accumulate(self.cut, out, weights, source, width, keys, rows, scale)

    @property
    def cut(self) -> Shape:
        """How work is cut at the tile at hand."""
        return self.shape.narrow if self.edge else self.shape

    @contextmanager
    def _groups(self, count: Value) -> Iterator[tuple[Rows, Keys]]:
        """A loop over groups of row vectors, each with the keys of the tile it may see."""
        with T.serial(self._count_of_groups().expr) as at:
            rows = self._rows_of(at)
            if not self.edge:
                yield rows, Keys(constant(0, "int32"), count)
                return
            keys = self._span(index(at))
            with T.If((keys.count > 0).expr), T.Then():
                yield rows, keys

    def _count_of_groups(self) -> Value:
        chunk = self.cut.vectors * self.shape.lanes
        return (self.count + (chunk - 1)) // chunk

    def _rows_of(self, at: object) -> Rows:
        return self.cut.at(index(at))

    def _find_spans(self, j_lo: Value, count: Value) -> None:
        """Of each group of rows, the keys of the tile that it may see, from the ranges in closed form."""
        with self._edges() as (at, rows):
            last = minimum(self.count - rows.first, rows.vectors * self.shape.lanes)
            start, end = hull_of(bounds_of(self.task, self.sizes, *self._positions(rows.first, last)), self.sizes)
            first = minimum(maximum(start - j_lo, 0), count).keep()
            self._keep_span(at, first, minimum(end - j_lo, count))

    def _look(self, number: int, j_lo: Value, count: Value) -> tuple[Value, Value]:
        """As in :class:`Tile`, and of each group of rows from which key to which there is a visible pair."""
        lanes = self.shape.lanes
        some = Registers(1, "int32", 1, constant(0, "int32"))
        every = Registers(1, "int32", lanes, constant(1, "int32"))
        with self._edges() as (at, rows):
            slots = self._row_slots(number, rows, {})
            first = Registers(1, "int32", lanes, constant(self.shape.keys, "int32"))
            last = Registers(1, "int32", lanes, constant(0, "int32"))
            with T.serial(count.expr) as key:
                n = index(key)
                here = self.task.at_key(number, (j_lo + n).keep())
                for row in slots:
                    visible = row.pair(here, [], kept=False).visible().spread(lanes).keep()
                    every[0] = every[0] & visible.to("int32")
                    first[0] = minimum(first[0], select(visible, n.spread(lanes), self.shape.keys))
                    last[0] = select(visible, (n + 1).spread(lanes), last[0])
            self._keep_span(at, min_of_lanes(first[0]).keep(), max_of_lanes(last[0]))
            some[0] = maximum(some[0], max_of_lanes(last[0]))
        return some[0] > 0, every_lane(every[0].differs(0))

    @contextmanager
    def _edges(self) -> Iterator[tuple[Value, Rows]]:
        """A loop over the groups of rows that have a span each."""
        before, self.edge = self.edge, True
        with T.serial(self._count_of_groups().expr) as at:
            yield index(at), self._rows_of(at)
        self.edge = before

    def _span(self, at: Value) -> Keys:
        return Keys(self.spans.load(at * 2).keep(), self.spans.load(at * 2 + 1).keep())

    def _keep_span(self, at: Value, first: Value, end: Value) -> None:
        self.spans.store(at * 2, first)
        self.spans.store(at * 2 + 1, maximum(end - first, 0))

    def _blank(self, walk: Walk, count: Value) -> None:
        """No weight for the pairs that no group of rows looks at."""
        zero = constant(0.0, self.shape.type).spread(self.shape.lanes)
        with self._edges() as (at, rows):
            span = self._span(at)
            end = (span.first + span.count).keep()
            for keys in (Keys(constant(0, "int32"), span.first), Keys(end, count - end)):
                with keys.each() as n:
                    for total in walk.sums:
                        for v in rows.all:
                            place = self.place(n, rows.first + v * self.shape.lanes)
                            self.planes[total.plane].store(place, zero)

    def _grow(self, number: int, walk: Walk, j_lo: Value, keys: Keys, at: Rows, *, masked: bool) -> None:
        shape = self.shape
        lowest = constant(LOWEST[shape.type], shape.type)
        slots = self._row_slots(number, at, self._before(number))
        best = Registers(len(walk.maxima) * at.vectors, shape.type, at.lanes)
        for m, (name, _) in enumerate(walk.maxima):
            for v in at.all:
                best[m * at.vectors + v] = self.state[name].load(at.place(v), at.lanes)
        with keys.each() as n:
            here = self.task.at_key(number, (j_lo + n).keep())
            for v in at.all:
                place = (n * shape.rows + at.place(v)).keep()
                planes = [self.planes[p].load(place, at.lanes).keep() for p in range(len(walk.products))]
                pair = slots[v].pair(here, planes, kept=False)
                terms = list(pair.maxima())
                for m, (_, plane) in enumerate(walk.maxima):
                    if plane >= len(walk.products) or terms[m] is not planes[plane]:
                        self.planes[plane].store(place, terms[m].spread(at.lanes))
                    term = select(pair.visible(), terms[m], lowest) if masked else terms[m]
                    best[m * at.vectors + v] = maximum(best[m * at.vectors + v], term)
        old = [list(row.shifts()) for row in slots]
        for m, (name, _) in enumerate(walk.maxima):
            for v in at.all:
                self.state[name].store(at.place(v), best[m * at.vectors + v])
        new = [list(row.shifts()) for row in self._row_slots(number, at, self._before(number))]
        for v in at.all:
            for k in range(walk.shifts):
                scale = exp((old[v][k] - new[v][k]).keep()).spread(at.lanes)
                self.scales[k].store(at.place(v), scale)

    def _total(self, number: int, walk: Walk, j_lo: Value, keys: Keys, at: Rows, *, masked: bool) -> None:
        shape = self.shape
        zero = constant(0.0, shape.type)
        slots = self._row_slots(number, at, self._before(number))
        sums = Registers(len(walk.totals) * at.vectors, shape.type, at.lanes, zero)
        seen = Registers(at.vectors, "int32", at.lanes)
        for v in at.all:
            old = self.seen.load(at.place(v), at.lanes)
            seen[v] = old if masked else constant(1, "int32")
        with keys.each() as n:
            here = self.task.at_key(number, (j_lo + n).keep())
            for v in at.all:
                place = (n * shape.rows + at.place(v)).keep()
                pair = slots[v].pair(
                    here, [plane.load(place, at.lanes).keep() for plane in self.planes[: walk.planes]], kept=True
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
                    self.planes[total.plane].store(place, term.spread(at.lanes))
        for v in at.all:
            first = (at.place(v)).keep()
            self.seen.store(first, seen[v])
            for t, (name, shift) in enumerate(walk.totals):
                old = self.state[name].load(first, at.lanes)
                if shift is not None:
                    old = old * self.scales[shift].load(first, at.lanes)
                self.state[name].store(first, old + sums[t * at.vectors + v])
