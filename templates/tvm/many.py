"""Tiles of many rows, which lie along the lanes."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.functions import exp
from attnc.templates.tvm.memory import Memory, Registers
from attnc.templates.tvm.products import Rows, Source, accumulate, gather_rows, index, products
from attnc.templates.tvm.tile import LOWEST, Elements, Tile
from attnc.templates.tvm.transpose import transpose
from attnc.templates.tvm.values import Value, constant, maximum, select
from attnc.templates.tvm.walk import Sum, Walk


class ManyRows(Tile):
    """Planes are ``[key, row]``, queries and sums ``[element, row]``."""

    def place(self, n: Value, r: Value) -> Value:
        return n * self.shape.rows + r

    def strides(self, width: int) -> tuple[int, int]:
        return 1, self.shape.rows

    def _take_plane(self) -> Memory:
        deep = -(-self.shape.keys // self.shape.block) * self.shape.block
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

    def _multiply(self, plane: Memory, queries: Memory, source: Source, width: int, count: Value) -> None:
        with T.serial(self.groups.expr) as at:
            products(self.shape, plane, queries, source, width, count, self._group(at))

    def _accumulate(
        self, out: Memory, weights: Memory, source: Source, width: int, count: Value, scale: Memory | None
    ) -> None:
        with T.serial(self.groups.expr) as at:
            accumulate(self.shape, out, weights, source, width, count, self._group(at), scale)

    def _weigh(self, number: int, walk: Walk, j_lo: Value, count: Value, *, masked: bool) -> None:
        with T.serial(self.groups.expr) as at:
            rows = self._group(at)
            if walk.maxima:
                self._grow(number, walk, j_lo, count, rows, masked=masked)
            self._total(number, walk, j_lo, count, rows, masked=masked)

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
