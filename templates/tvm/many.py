"""Tiles of many rows, which lie along the lanes."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.edges import Edges
from attnc.templates.tvm.functions import exp
from attnc.templates.tvm.memory import Memory, Registers
from attnc.templates.tvm.products import (
    Keys,
    Readable,
    Rows,
    Source,
    accumulate,
    gather_rows,
    index,
    products,
)
from attnc.templates.tvm.state import LOWEST, Elements
from attnc.templates.tvm.transpose import transpose
from attnc.templates.tvm.twos import Paired, add_products, has_twos, pair_elements, pair_keys, pair_weights
from attnc.templates.tvm.values import Value, constant, maximum, minimum, select
from attnc.templates.tvm.visible import bounds_of, hull_of
from attnc.templates.tvm.walk import Product, Sum, Walk

JOINT = 4
"""Vectors whose numbers are computed side by side: a processor does not look far enough ahead to start the next one."""


class ManyRows(Edges):
    """Planes are ``[key, row]``, queries and sums ``[element, row]``.

    Attributes:
        joint: how many vectors are computed side by side.
    """

    joint = JOINT

    def _start(self) -> None:
        self._ask()
        super()._start()

    def strides(self, width: int) -> tuple[int, int]:
        return 1, self.shape.rows

    def _take_plane(self) -> Memory:
        deep = -(-self.shape.keys // self.shape.block) * self.shape.block + self.shape.block
        return self.take(deep * self.shape.rows, self.shape.type, "plane")

    def _take_queries(self, product: Product) -> Memory:
        if self._by_twos(product):
            return self.take(product.width // 2 * self.rows, "int32", "queries")
        return super()._take_queries(product)

    def _fill(self, queries: Memory, read: Elements, product: Product) -> None:
        shape, width = self.shape, product.width
        with self.scratch.shared():
            by_row = self.take(width * shape.rows, shape.type, "rows")
            gather_rows(shape, by_row, read, width, self.groups * (self.vectors * shape.lanes))
            if not self._by_twos(product):
                transpose(queries, by_row, shape.rows, width, shape.lanes)
                return
            by_element = self.take(width * shape.rows, shape.type, "elements")
            transpose(by_element, by_row, shape.rows, width, shape.lanes)
            pair_elements(shape, queries, by_element, width)

    def _by_twos(self, part: Product | Sum) -> bool:
        return part.twos and has_twos(self.shape)

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

    def _multiply_twos(self, plane: Memory, queries: Memory, source: Source, product: Product, count: Value) -> bool:
        if not self._by_twos(product):
            return False

        def paired(n: Value) -> tuple[Readable, Value]:
            memory, offset = source(n)
            return Paired(memory, offset.keep()), constant(0, "int64")

        with self._groups(count) as (rows, keys):
            products(self.cut, plane, queries, paired, product.width // 2, keys, rows, add_products)
        return True

    def _accumulate_twos(
        self, out: Memory, weights: Memory, elements: Elements, total: Sum, count: Value, scale: Memory | None
    ) -> bool:
        if not self._by_twos(total):
            return False
        with self.scratch.shared():
            values = self.take((self.shape.keys + 1) // 2 * total.width, "int32", "pairs")
            pair_keys(self.shape, values, elements, total.width, count)

            def source(n: Value) -> tuple[Readable, Value]:
                return values, (n * total.width).to("int64")

            with self._groups(count) as (rows, keys):
                halves = pair_weights(self.cut, weights, keys, rows)
                accumulate(self.cut, out, weights, source, total.width, halves, rows, scale, add_products)
        return True

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
