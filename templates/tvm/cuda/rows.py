"""The rows of a tile as the threads of a block hold them: scores, statistics and sums in registers.

Each thread holds two rows of every 16 of its warp, ``group`` and ``group + 8``, and a quarter of the columns: of every
8 keys, or elements of a sum, ``2 * place`` and the next. Where what is, :meth:`Shape.place` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.cuda.block import GROUP, Block, Local, Shared
from attnc.templates.tvm.cuda.shape import Shape
from attnc.templates.tvm.cuda.slots import BlockSlots, BlockTaskSlots
from attnc.templates.tvm.functions import exp
from attnc.templates.tvm.processor import device_function
from attnc.templates.tvm.products import index
from attnc.templates.tvm.state import LOWEST
from attnc.templates.tvm.values import Value, constant, minimum, select
from attnc.templates.tvm.walk import RowSlots, Sizes, Walk

REAL = "float32"


class HeldRows:
    """The state of the rows of a block, and how a tile of keys changes it."""

    def __init__(
        self, shape: Shape, slots: BlockSlots, task: BlockTaskSlots, sizes: Sizes, block: Block, first: Value
    ) -> None:
        self.shape, self.slots, self.task, self.sizes, self.block = shape, slots, task, sizes, block
        self.first = first
        self.pairs = [(u, c) for c in (0, 1) for u in shape.held]
        start = block.warp * (GROUP * shape.groups) + block.group
        self.own = [(start + (u // 2 * GROUP + u % 2 * 8)).keep() for u in shape.held]
        self.rows = [minimum(first + own, sizes.M - 1).keep() for own in self.own]
        zero, held = constant(0.0, REAL), len(shape.held)
        maxima = {name for walk in slots.walks for name, _ in walk.maxima}
        names = [name for walk in slots.walks for name, _ in walk.maxima + walk.totals]
        lowest = constant(LOWEST[REAL], REAL)
        self.state = {name: Local(held, REAL, lowest if name in maxima else zero) for name in names}
        totals = [total for walk in slots.walks for total in walk.sums]
        self.sums = {total.name: Local(shape.padded(total.width) // 4 * held, REAL, zero) for total in totals}
        self.seen = Local(held, "int32", constant(0, "int32"))
        self.planes = [Local(shape.keys // 4 * held, REAL) for _ in range(max(walk.planes for walk in slots.walks))]
        self.scales = [Local(held, REAL) for _ in range(max(walk.shifts for walk in slots.walks))]

    def row_slots(self, number: int, *, totals: bool = False) -> list[RowSlots]:
        """The rows, with the maxima of a walk (and its totals), and everything of earlier ones."""
        names = [name for walk in self.slots.walks[:number] for name, _ in walk.maxima + walk.totals]
        walk = self.slots.walks[number]
        names += [name for name, _ in walk.maxima + (walk.totals if totals else ())]
        return [
            self.task.rows(number, row, {name: self.state[name][u].keep() for name in names})
            for u, row in enumerate(self.rows)
        ]

    @contextmanager
    def each_key(self, j_lo: Value) -> Iterator[tuple[Value, dict[int, tuple[Value, Value]]]]:
        """The code for every 8 keys: which eight it is, and of this thread's two the number in the tile and ``j``."""
        with T.unroll(self.shape.keys // 8) as at:
            eight = index(at)
            keys = {}
            for c in (0, 1):
                n = (eight * 8 + self.block.place * 2 + c).keep()
                keys[c] = (n, minimum(j_lo + n, self.sizes.N - 1).keep())
            yield eight, keys

    def grow(self, number: int, walk: Walk, j_lo: Value, count: Value, *, masked: bool) -> None:
        """Let the maxima grow, and what is relative to them shrink by as much."""
        lowest = constant(LOWEST[REAL], REAL)
        rows = self.row_slots(number)
        best = [Local(len(self.rows), REAL) for _ in walk.maxima]
        for m, (name, _) in enumerate(walk.maxima):
            for u in self.shape.held:
                best[m][u] = self.state[name][u]
        with self.each_key(j_lo) as (eight, keys):
            scopes = {c: self.task.at_key(number, j) for c, (_, j) in keys.items()}
            for u, c in self.pairs:
                place = self.shape.place(eight, u, c, self.shape.keys).keep()
                planes = [self.planes[p][place].keep() for p in range(len(walk.products))]
                pair = rows[u].pair(scopes[c], planes, kept=False)
                terms = list(pair.maxima())
                visible = self._visible(pair.visible, keys[c][0], count) if masked else None
                for m, (_, plane) in enumerate(walk.maxima):
                    if plane >= len(walk.products) or terms[m] is not planes[plane]:
                        self.planes[plane][place] = terms[m]
                    term = terms[m] if visible is None else select(visible, terms[m], lowest)
                    best[m][u] = device_function("fmaxf", best[m][u], term)
        old = [list(row.shifts()) for row in rows]
        for m, (name, _) in enumerate(walk.maxima):
            for u in self.shape.held:
                self.state[name][u] = device_function("attnc_row_max", best[m][u], type=REAL)
        new = [list(row.shifts()) for row in self.row_slots(number)]
        for k in range(walk.shifts):
            grown = constant(False, "bool")
            for u in self.shape.held:
                self.scales[k][u] = scale = exp((old[u][k] - new[u][k]).keep()).keep()
                grown = grown | scale.differs(1.0)
            moved = device_function("attnc_warp_any", grown.to("int32")).keep()
            with T.If(moved.differs(0).expr), T.Then():
                self._rescale(walk, k)

    def _rescale(self, walk: Walk, shift: int) -> None:
        """What is relative to a shift, after it grew in a row of the warp."""
        scales = self.scales[shift]
        for name, its in walk.totals:
            if its == shift:
                for u in self.shape.held:
                    self.state[name][u] = self.state[name][u] * scales[u]
        for total in walk.sums:
            if total.shift == shift:
                sums, padded = self.sums[total.name], self.shape.padded(total.width)
                with T.unroll(padded // 8) as at:
                    for u, c in self.pairs:
                        place = self.shape.place(index(at), u, c, padded)
                        sums[place] = sums[place] * scales[u]

    def add(self, number: int, walk: Walk, j_lo: Value, count: Value, *, masked: bool) -> None:
        """Add up the totals, and leave the weights of the sums in their planes."""
        zero = constant(0.0, REAL)
        rows = self.row_slots(number)
        if not masked:
            for u in self.shape.held:
                self.seen[u] = constant(1, "int32")
        with self.each_key(j_lo) as (eight, keys):
            scopes = {c: self.task.at_key(number, j) for c, (_, j) in keys.items()}
            for u, c in self.pairs:
                place = self.shape.place(eight, u, c, self.shape.keys).keep()
                pair = rows[u].pair(scopes[c], [p[place].keep() for p in self.planes[: walk.planes]], kept=True)
                visible = self._visible(pair.visible, keys[c][0], count) if masked else None
                terms = [*pair.totals(), *pair.weights()]
                if visible is not None:
                    self.seen[u] = self.seen[u] | visible.to("int32")
                    terms = [select(visible, term, zero) for term in terms]
                terms = [term.keep() for term in terms]
                for (name, _), term in zip(walk.totals, terms, strict=False):
                    self.state[name][u] = self.state[name][u] + term
                for total, term in zip(walk.sums, terms[len(walk.totals) :], strict=True):
                    self.planes[total.plane][place] = term

    def _visible(self, mask: Callable[[], Value], n: Value, count: Value) -> Value:
        there = n < count
        return (there & mask() if self.slots.masked else there).keep()

    def end_walk(self, walk: Walk) -> None:
        """Each total was added up by four threads."""
        for name, _ in walk.totals:
            for u in self.shape.held:
                self.state[name][u] = device_function("attnc_row_sum", self.state[name][u], type=REAL)

    def look(self, number: int, j_lo: Value, count: Value) -> tuple[Value, Value]:
        """Whether any pair of a tile of keys is visible, and whether all are; for all threads of the block."""
        some, every = Local(1, "int32", constant(0, "int32")), Local(1, "int32", constant(1, "int32"))
        rows = [self.task.rows(number, row, {}) for row in self.rows]
        with self.each_key(j_lo) as (_, keys):
            scopes = {c: self.task.at_key(number, j) for c, (_, j) in keys.items()}
            for u, c in self.pairs:
                visible = self._visible(rows[u].pair(scopes[c], [], kept=False).visible, keys[c][0], count)
                some[0] = some[0] | visible.to("int32")
                every[0] = every[0] & visible.to("int32")
        return device_function("attnc_any", some[0], type="int32"), device_function(
            "attnc_every", every[0], type="int32"
        )

    def keep_states(self) -> tuple[dict[str, Shared], Shared]:
        """Statistics, and whether a row saw a key, in shared memory by row."""
        kept = {name: self.block.take(self.shape.rows, REAL) for name in self.state}
        seen = self.block.take(self.shape.rows, "int32")
        any_of_row = [device_function("attnc_row_any", self.seen[u], type="int32").keep() for u in self.shape.held]
        with T.If(self.block.place.equals(0).expr), T.Then():
            for u, own in enumerate(self.own):
                for name, local in self.state.items():
                    kept[name].store(own, local[u])
                seen.store(own, any_of_row[u])
        return kept, seen
