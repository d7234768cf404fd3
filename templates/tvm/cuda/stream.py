"""The ``stream`` and ``twopass`` families on a GPU: each block has a tile of rows and walks over its visible keys.

The next tile of keys is on its way to shared memory while one is multiplied. Which tile is next is found first, so that
tiles without a visible pair are neither copied nor multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.cuda.block import Block, Local, LocalScratch, Shared, call, synchronise
from attnc.templates.tvm.cuda.by_pair import pair_accumulate, pair_products
from attnc.templates.tvm.cuda.copies import Source, Tile, copy, pad
from attnc.templates.tvm.cuda.finish import finish
from attnc.templates.tvm.cuda.products import accumulate, multiply
from attnc.templates.tvm.cuda.rows import HeldRows
from attnc.templates.tvm.cuda.shape import Shape
from attnc.templates.tvm.cuda.slots import BlockSlots, BlockTaskSlots
from attnc.templates.tvm.values import Value, constant, maximum, minimum, select
from attnc.templates.tvm.walk import Sizes, Walk

STAGES = 2


def stream(shape: Shape, slots: BlockSlots, sizes: Sizes, block: Block) -> None:
    """The whole kernel, for block ``block.number`` of ``B * H * ceil(M / shape.rows)``.

    Later rows come first, since they often see more keys.
    """
    tiles = ((sizes.M + (shape.rows - 1)) // shape.rows).keep()
    head = (block.number // tiles).keep()
    b, h = (head // sizes.H).keep(), (head % sizes.H).keep()
    row = ((tiles - 1 - block.number % tiles) * shape.rows).keep()
    count = minimum(sizes.M - row, shape.rows).keep()
    task = slots.block_task(b, h, LocalScratch())
    rows = HeldRows(shape, slots, task, sizes, block, row)
    with block.overlaid():
        for number, walk in enumerate(slots.walks):
            with block.overlaid():
                _Walk(shape, slots, task, sizes, block, rows, row, count, number, walk).run()
    finish(shape, slots, task, block, rows, row, count)


@dataclass(frozen=True, slots=True)
class _Next:
    """Which tile is next, and whether all of its pairs are visible."""

    at: Local
    full: Local

    @classmethod
    def make(cls) -> _Next:
        return cls(Local(1, "int32", constant(0, "int32")), Local(1, "int32", constant(0, "int32")))


class _Walk:
    """One pass over the keys."""

    def __init__(
        self,
        shape: Shape,
        slots: BlockSlots,
        task: BlockTaskSlots,
        sizes: Sizes,
        block: Block,
        rows: HeldRows,
        row: Value,
        count: Value,
        number: int,
        walk: Walk,
    ) -> None:
        self.shape, self.slots, self.task, self.sizes, self.block = shape, slots, task, sizes, block
        self.rows, self.row, self.count, self.number, self.walk = rows, row, count, number, walk
        self.i_lo = (row + (sizes.N - sizes.M)).keep()
        self.i_hi = (self.i_lo + count - 1).keep()
        self.queries = [
            None if product.by_pair else Tile(shape, self._take(shape.rows, product.width), product.width, shape.rows)
            for product in walk.products
        ]
        self.keys = [None if product.by_pair else self._stages(product.width) for product in walk.products]
        self.values = [None if total.by_pair else self._stages(total.width) for total in walk.sums]
        by_pair = [*walk.products, *walk.sums]
        self.pairs = block.take(shape.rows * shape.keys, "float32") if any(x.by_pair for x in by_pair) else None

    def _take(self, rows: int, width: int) -> Shared:
        return self.block.take(rows * self.shape.pitch(width), self.shape.stored)

    def _stages(self, width: int) -> Tile:
        """Room for one tile of keys a stage; tile 0 of it."""
        return Tile(self.shape, self._take(STAGES * self.shape.keys, width), width, self.shape.keys)

    def run(self) -> None:
        self._begin()
        current, following = _Next.make(), _Next.make()
        stage = Local(1, "int32", constant(0, "int32"))
        self._find(current)
        self._copy(current.at[0], constant(0, "int32"))
        call("attnc_commit")
        with T.While((current.at[0] < self.tiles).expr):
            following.at[0] = current.at[0] + 1
            self._find(following)
            self._copy(following.at[0], 1 - stage[0])
            call("attnc_commit")
            call("attnc_wait")
            synchronise()
            self._compute(current, stage[0].keep())
            synchronise()
            current.at[0], current.full[0] = following.at[0], following.full[0]
            stage[0] = 1 - stage[0]
        call("attnc_wait_all")
        synchronise()
        self.rows.end_walk(self.walk)

    def _begin(self) -> None:
        """Bounds of the keys, and the queries."""
        self.bounds = [
            tuple(x.keep() for x in (maximum(lo, 0), minimum(hi, self.sizes.N), full_lo, full_hi))
            for lo, hi, full_lo, full_hi in self.task.ranges(self.i_lo, self.i_hi)
        ]
        if len(self.bounds) == 1:
            self.start, self.end = self.bounds[0][:2]
        else:
            start, end = self.sizes.N, constant(0, "int32")
            for lo, hi, _, _ in self.bounds:
                start = select(lo < hi, minimum(start, lo), start).keep()
                end = select(lo < hi, maximum(end, hi), end).keep()
            self.start, self.end = start, end
        keys = self.shape.keys
        self.tiles = ((maximum(self.end - self.start, 0) + (keys - 1)) // keys).keep()
        self.sources: list[tuple[Tile, Source]] = []
        for p, tile in enumerate(self.keys):
            if tile is not None:
                self.sources.append((tile, self.task.key_source(self.number, p)))
        for k, tile in enumerate(self.values):
            if tile is not None:
                self.sources.append((tile, self.task.value_source(self.number, k)))
        for tile, _ in self.sources:
            pad(self.block, Tile(self.shape, tile.memory, tile.width, STAGES * keys))
        for p, tile in enumerate(self.queries):
            if tile is not None:
                pad(self.block, tile)
                source = self.task.query_source(self.number, p)
                copy(self.block, tile, source, self.row, self.count, self.sizes.M - 1)

    def _place(self, at: Value) -> tuple[Value, Value, Value]:
        """First key, last key and number of keys of a tile."""
        j_lo = (self.start + at * self.shape.keys).keep()
        count = minimum(self.end - j_lo, self.shape.keys).keep()
        return j_lo, (j_lo + count - 1).keep(), count

    def _find(self, found: _Next) -> None:
        """The first tile from ``found.at`` on that has a visible pair, if that is known."""
        if not self.slots.masked:
            found.full[0] = constant(1, "int32")
            return
        searching = Local(1, "int32", constant(1, "int32"))
        with T.While((searching[0].differs(0) & (found.at[0] < self.tiles)).expr):
            j_lo, j_hi, count = self._place(found.at[0].keep())
            wanted, full = self._known(j_lo, j_hi)
            some = Local(1, "int32", (constant(True, "bool") if wanted is None else wanted).to("int32"))
            found.full[0] = full.to("int32")
            if self.slots.by_data:
                with T.If((some[0].differs(0) & found.full[0].equals(0)).expr), T.Then():
                    any_pair, every_pair = self.rows.look(self.number, j_lo, count)
                    some[0] = any_pair
                    found.full[0] = every_pair
            searching[0] = 1 - (some[0].differs(0)).to("int32")
            found.at[0] = found.at[0] + searching[0]

    def _known(self, j_lo: Value, j_hi: Value) -> tuple[Value | None, Value]:
        """What the expression of the mask says of a tile: whether it is wanted (``None``: always), whether full."""
        wanted = None if len(self.bounds) == 1 else constant(False, "bool")
        full = constant(False, "bool")
        for lo, hi, full_lo, full_hi in self.bounds:
            if wanted is not None:
                wanted = wanted | ((j_lo < hi) & (j_hi >= lo))
            full = full | ((j_lo >= full_lo) & (j_hi < full_hi))
        if (known := self.task.full(self.i_lo, self.i_hi, j_lo, j_hi)) is not None:
            full = full | known
        if (known := self.task.empty(self.i_lo, self.i_hi, j_lo, j_hi)) is not None:
            wanted = ~known if wanted is None else wanted & ~known
        return (None if wanted is None else wanted.keep()), full.keep()

    def _copy(self, at: Value, stage: Value) -> None:
        """Tile ``at`` on its way to a stage, if there is such a tile."""
        at = at.keep()
        with T.If((at < self.tiles).expr), T.Then():
            j_lo, _, count = self._place(at)
            rows = (stage * self.shape.keys).keep()
            for tile, source in self.sources:
                copy(self.block, tile.at(rows), source, j_lo, count, self.sizes.N - 1)

    def _compute(self, current: _Next, stage: Value) -> None:
        j_lo, _, count = self._place(current.at[0].keep())
        first = (stage * self.shape.keys).keep()
        for p, (queries, keys) in enumerate(zip(self.queries, self.keys, strict=True)):
            if queries is None or keys is None:
                assert self.pairs is not None
                pair_products(self.rows, self.pairs, self.number, p, j_lo)
            else:
                multiply(self.block, self.rows.planes[p], queries, keys.at(first))
        unmasked = current.full[0].differs(0) & count.equals(self.shape.keys)
        with T.If(unmasked.expr):
            with T.Then():
                self._weigh(j_lo, count, masked=False)
            with T.Else():
                self._weigh(j_lo, count, masked=True)
        for k, (total, values) in enumerate(zip(self.walk.sums, self.values, strict=True)):
            sums, weights = self.rows.sums[total.name], self.rows.planes[total.plane]
            if values is None:
                assert self.pairs is not None
                pair_accumulate(self.rows, self.pairs, self.number, k, sums, weights, j_lo, count)
            else:
                accumulate(self.block, sums, weights, values.at(first), wide=total.name in self.slots.wide)

    def _weigh(self, j_lo: Value, count: Value, *, masked: bool) -> None:
        if self.walk.maxima:
            self.rows.grow(self.number, self.walk, j_lo, count, masked=masked)
        self.rows.add(self.number, self.walk, j_lo, count, masked=masked)
