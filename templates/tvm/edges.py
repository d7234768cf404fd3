"""Edges: tiles of keys of which the mask hides some pairs. There each group of rows works on a span of keys alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.lanes import every_lane, max_of_lanes, min_of_lanes
from attnc.templates.tvm.memory import Registers
from attnc.templates.tvm.products import Keys, Rows, Shape, index
from attnc.templates.tvm.tile import Tile
from attnc.templates.tvm.values import Value, constant, maximum, minimum, select
from attnc.templates.tvm.visible import bounds_of, hull_of
from attnc.templates.tvm.walk import Walk


class Edges(Tile):
    """Planes are ``[key, row]``.

    Attributes:
        reads_every_pair: weights are read of pairs too that no group of rows looks at.
        edge: code is being made for an edge.
    """

    reads_every_pair = False
    edge = False

    def _start(self) -> None:
        super()._start()
        self.spans = self.take(2 * (self.shape.rows // self.shape.lanes), "int32", "spans")
        self.reads_every_pair |= any(total.by_pair for walk in self.slots.walks for total in walk.sums)

    def place(self, n: Value, r: Value) -> Value:
        return n * self.shape.rows + r

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
            self._keep_span(at, first, minimum(end - j_lo, count), count)

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
            self._keep_span(at, min_of_lanes(first[0]).keep(), max_of_lanes(last[0]), count)
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

    def _keep_span(self, at: Value, first: Value, end: Value, count: Value) -> None:
        """Of the keys from ``first`` to before ``end``, and of those beside them with which they make pairs."""
        first = (first & -2).keep()
        end = minimum(end + (end & 1), count).keep()
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
