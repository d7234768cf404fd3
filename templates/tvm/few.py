"""Tiles of few rows, as in decoding: elements of vectors, and then keys, lie along the lanes, for one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.few_products import few_accumulate, few_products
from attnc.templates.tvm.functions import exp
from attnc.templates.tvm.head import FEW
from attnc.templates.tvm.lanes import any_lane, max_of_lanes, sum_of_lanes
from attnc.templates.tvm.memory import Memory, Registers
from attnc.templates.tvm.products import Source, gather_rows, index
from attnc.templates.tvm.tile import LOWEST, Elements, Tile
from attnc.templates.tvm.values import Value, constant, maximum, minimum, ramp, select
from attnc.templates.tvm.walk import RowSlots, Sum, Walk


class FewRows(Tile):
    """Planes are ``[row, key]``, queries and sums ``[row, element]``."""

    @property
    def pitch(self) -> int:
        """From row to row of a plane: whole vectors of keys."""
        return -(-self.shape.keys // self.shape.lanes) * self.shape.lanes

    def place(self, n: Value, r: Value) -> Value:
        return r * self.pitch + n

    def strides(self, width: int) -> tuple[int, int]:
        return width, 1

    def _take_plane(self) -> Memory:
        return self.take(FEW * self.pitch, self.shape.type, "plane")

    def _fill(self, queries: Memory, read: Elements, width: int) -> None:
        gather_rows(self.shape, queries, read, width, self.count)

    def _by_row(self, total: Sum) -> Callable[[Value], Callable[[Value | int, int], Value]]:
        memory = self.sums[total.name]
        return lambda r: lambda start, lanes: memory.load(r * total.width + start, lanes)

    def _multiply(self, plane: Memory, queries: Memory, source: Source, width: int, count: Value) -> None:
        few_products(self.shape, plane, queries, source, width, count, self.count, self.pitch)

    def _accumulate(
        self, out: Memory, weights: Memory, source: Source, width: int, count: Value, scale: Memory | None
    ) -> None:
        few_accumulate(self.shape, out, weights, source, width, count, self.count, scale, self.pitch)

    def _reads_once(self) -> Value:
        return self.count <= 1

    def _compute(self, number: int, walk: Walk, j_lo: Value, count: Value, full: Value) -> None:
        self._products(number, walk, j_lo, count)
        with T.If((full & (count % self.shape.lanes).equals(0)).expr):
            with T.Then():
                self._weigh(number, walk, j_lo, count, masked=False)
            with T.Else():
                self._weigh(number, walk, j_lo, count, masked=True)
        self._sums(number, walk, j_lo, count)

    def _weigh(self, number: int, walk: Walk, j_lo: Value, count: Value, *, masked: bool) -> None:
        with T.serial(self.count.expr) as at:
            r = index(at)
            if walk.maxima:
                self._grow(number, walk, j_lo, count, r, masked=masked)
            self._total(number, walk, j_lo, count, r, masked=masked)

    def _row(self, number: int, r: Value) -> RowSlots:
        values = {name: memory.load(r).keep() for name, memory in self._before(number).items()}
        return self.task.rows(number, (self.row + r).keep(), values)

    def _keys(self, number: int, first: Value, j_lo: Value, count: Value) -> tuple[Any, Value]:
        """A vector of keys, the last one repeated, and which of them there are."""
        n = ramp(self.shape.lanes, first).keep()
        j = (j_lo.spread(self.shape.lanes) + minimum(n, (count - 1).spread(self.shape.lanes))).keep()
        return self.task.at_key(number, j), n < count.spread(self.shape.lanes)

    def _grow(self, number: int, walk: Walk, j_lo: Value, count: Value, r: Value, *, masked: bool) -> None:
        shape = self.shape
        lanes, lowest = shape.lanes, constant(LOWEST[shape.type], shape.type)
        slots = self._row(number, r)
        best = Registers(len(walk.maxima), shape.type, lanes, lowest)
        with T.serial(((count + (lanes - 1)) // lanes).expr) as turn:
            first = (index(turn) * lanes).keep()
            here, there = self._keys(number, first, j_lo, count)
            place = self.place(first, r).keep()
            planes = [self.planes[p].load(place, lanes).keep() for p in range(len(walk.products))]
            pair = slots.pair(here, planes, kept=False)
            terms = list(pair.maxima())
            visible = (there & pair.visible() if self.slots.masked else there).keep() if masked else None
            for m, (_, plane) in enumerate(walk.maxima):
                if plane >= len(walk.products) or terms[m] is not planes[plane]:
                    self.planes[plane].store(place, terms[m].spread(lanes))
                term = terms[m] if visible is None else select(visible, terms[m], lowest)
                best[m] = maximum(best[m], term)
        old = list(slots.shifts())
        for m, (name, _) in enumerate(walk.maxima):
            self.state[name].store(r, maximum(self.state[name].load(r), max_of_lanes(best[m])))
        new = list(self._row(number, r).shifts())
        for k in range(walk.shifts):
            self.scales[k].store(r, exp((old[k] - new[k]).keep()))

    def _total(self, number: int, walk: Walk, j_lo: Value, count: Value, r: Value, *, masked: bool) -> None:
        shape = self.shape
        lanes, zero = shape.lanes, constant(0.0, shape.type)
        slots = self._row(number, r)
        sums = Registers(len(walk.totals), shape.type, lanes, zero)
        seen = Registers(1, "int32", lanes, constant(0 if masked else 1, "int32"))
        with T.serial(((count + (lanes - 1)) // lanes).expr) as turn:
            first = (index(turn) * lanes).keep()
            here, there = self._keys(number, first, j_lo, count)
            place = self.place(first, r).keep()
            planes = [plane.load(place, lanes).keep() for plane in self.planes[: walk.planes]]
            pair = slots.pair(here, planes, kept=True)
            terms = [*pair.totals(), *pair.weights()]
            if masked:
                visible = (there & pair.visible() if self.slots.masked else there).keep()
                seen[0] = seen[0] | visible.to("int32")
                terms = [select(visible, term, zero) for term in terms]
            terms = [term.keep() for term in terms]
            for t in range(len(walk.totals)):
                sums[t] = sums[t] + terms[t]
            for total, term in zip(walk.sums, terms[len(walk.totals) :], strict=True):
                self.planes[total.plane].store(place, term.spread(lanes))
        self.seen.store(r, self.seen.load(r) | any_lane(seen[0].differs(0)).to("int32"))
        for t, (name, shift) in enumerate(walk.totals):
            old = self.state[name].load(r)
            if shift is not None:
                old = old * self.scales[shift].load(r)
            self.state[name].store(r, old + sum_of_lanes(sums[t]))
