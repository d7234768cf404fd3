"""The ``scatter`` family: a number for every visible pair, added to where the pair says.

Pairs of one head are met in one order, whatever the number of threads, so that sums have the same bits each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.many import ManyRows
from attnc.templates.tvm.memory import Memory, Scratch
from attnc.templates.tvm.products import Keys, Rows, Shape, index
from attnc.templates.tvm.tasks import Tasks
from attnc.templates.tvm.values import Value, constant, minimum, ramp, select
from attnc.templates.tvm.walk import Sizes, Slots, Walk


class PlacedPair(Protocol):
    """One key against one vector of rows."""

    def visible(self) -> Value: ...

    def totals(self) -> Sequence[Value]: ...

    def place(self) -> tuple[Value, Value | None]:
        """The element that the number goes to, and whether there is one (``None``: always)."""
        ...


def scatter(shape: Shape, slots: Slots, sizes: Sizes, target: Memory, tasks: Tasks, *, apart: bool) -> None:
    """The whole kernel: ``target[place] += number`` for all pairs. ``target`` starts at 0.

    Args:
        shape: how tiles are cut.
        slots: of one walk with one total, the number.
        sizes: of the call.
        target: what is added to.
        tasks: the loops of the kernel.
        apart: different rows add to different elements, so that rows can be dealt to threads, else heads are.
    """
    tiles = ((sizes.M + (shape.rows - 1)) // shape.rows).keep()
    with tasks.dealt(sizes.B * sizes.H * (tiles if apart else 1)) as (task, scratch):
        head = (task // tiles).keep() if apart else task
        slot = slots.task((head // sizes.H).keep(), (head % sizes.H).keep(), scratch)

        def tile(number: Value, scratch: Scratch) -> None:
            row = (number * shape.rows).keep()
            count = minimum(sizes.M - row, shape.rows).keep()
            _Scattering(shape, slots, slot, sizes, scratch, row, count, shape.vectors, shape.rows).run_into(target)

        if apart:
            tile((task % tiles).keep(), scratch)
        else:
            with T.serial(tiles.expr) as number:
                tile(index(number), scratch)


class _Scattering(ManyRows):
    """The code for one tile of rows."""

    joint = 1

    def run_into(self, target: Memory) -> None:
        self.target = target
        self.places = self.take(self.shape.lanes, "int64", "places")
        self.numbers = self.take(self.shape.lanes, self.shape.type, "numbers")
        self.run()

    def finish(self) -> None:
        """Nothing is written a row."""

    def _total(self, number: int, walk: Walk, j_lo: Value, keys: Keys, at: Rows, *, masked: bool) -> None:
        shape = self.shape
        slots = self._row_slots(number, at, {})
        with keys.each() as n:
            here: Any = self.task.at_key(number, (j_lo + n).keep())
            for v in at.all:
                first = (at.first + v * shape.lanes).keep()
                place = (n * shape.rows + first).keep()
                planes = [plane.load(place, shape.lanes).keep() for plane in self.planes[: walk.planes]]
                pair = cast(PlacedPair, slots[v].pair(here, planes, kept=True))
                offset, inside = pair.place()
                wanted = (ramp(shape.lanes, first) < self.count.spread(shape.lanes)).keep()
                if masked:
                    wanted = wanted & pair.visible()
                if inside is not None:
                    wanted = wanted & inside
                nowhere = constant(-1, "int64")
                self.places.store(0, select(wanted, offset.spread(shape.lanes), nowhere))
                self.numbers.store(0, pair.totals()[0].spread(shape.lanes))
                with T.serial(shape.lanes) as lane:
                    spot = self.places.load(index(lane)).keep()
                    with T.If((spot >= 0).expr), T.Then():
                        self.target.store(spot, self.target.load(spot) + self.numbers.load(index(lane)))
