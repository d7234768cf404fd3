"""Keys dealt to several tasks where rows are few, as in decoding: each leaves its state, and the states are merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.few import FewRows
from attnc.templates.tvm.functions import exp
from attnc.templates.tvm.memory import Memory
from attnc.templates.tvm.products import index, pieces
from attnc.templates.tvm.values import Value, constant, maximum
from attnc.templates.tvm.walk import Walk

Partial: TypeAlias = Callable[[Value, Value, Value], tuple[Memory, Value]]
"""From a part, ``b`` and ``h`` to memory and place of the states of its rows."""


def width_of_state(walk: Walk) -> int:
    """Numbers of the state of a row: statistics, whether it saw a key, sums."""
    return len(walk.maxima) + len(walk.totals) + 1 + sum(total.width for total in walk.sums)


class SplitRows(FewRows):
    """Few rows of a plan of one pass, whose state is kept or merged."""

    def keep(self, memory: Memory, place: Value) -> None:
        """Write the state of all rows."""
        with T.serial(self.count.expr) as at:
            r = index(at)
            first = (place + (r * self._width).to("int64")).keep()
            for number, state in enumerate(self.state.values()):
                memory.store(first + number, state.load(r))
            memory.store(first + len(self.state), self.seen.load(r).to(memory.type))
            for total, start, lanes, offset in self._pieces():
                memory.store(first + offset, self.sums[total].load(r * self._widths[total] + start, lanes))

    def merge(self, memory: Memory, place: Value) -> None:
        """Add a state that was kept: what both sum is rescaled to the larger of their maxima."""
        (walk,) = self.slots.walks
        maxima = {name for name, _ in walk.maxima}
        with T.serial(self.count.expr) as at:
            r = index(at)
            first = (place + (r * self._width).to("int64")).keep()
            own = {name: state.load(r).keep() for name, state in self.state.items()}
            other = {name: memory.load(first + number).keep() for number, name in enumerate(self.state)}
            both = {name: maximum(own[name], other[name]).keep() if name in maxima else own[name] for name in own}
            row = (self.row + r).keep()
            olds, others, news = (list(self.task.rows(0, row, state).shifts()) for state in (own, other, both))
            scales = [
                (exp((a - new).keep()).keep(), exp((b - new).keep()).keep())
                for a, b, new in zip(olds, others, news, strict=True)
            ]
            one = constant(1.0, self.shape.type)
            for name in maxima:
                self.state[name].store(r, both[name])
            for name, shift in walk.totals:
                a, b = (one, one) if shift is None else scales[shift]
                self.state[name].store(r, own[name] * a + other[name] * b)
            seen = memory.load(first + len(self.state)).differs(0.0).to("int32")
            self.seen.store(r, self.seen.load(r) | seen)
            shifts = {total.name: total.shift for total in walk.sums}
            for total, start, lanes, offset in self._pieces():
                shift = shifts[total]
                a, b = (one, one) if shift is None else scales[shift]
                at_sum = (r * self._widths[total] + start).keep()
                old = self.sums[total].load(at_sum, lanes)
                self.sums[total].store(at_sum, old * a + memory.load(first + offset, lanes) * b)

    @property
    def _width(self) -> int:
        return width_of_state(self.slots.walks[0])

    @property
    def _widths(self) -> dict[str, int]:
        return {total.name: total.width for total in self.slots.walks[0].sums}

    def _pieces(self) -> list[tuple[str, int, int, int]]:
        """Of the sums: name, start, lanes, and where they stand in a state."""
        found, offset = [], len(self.state) + 1
        for name, width in self._widths.items():
            found += [(name, start, lanes, offset + start) for start, lanes in pieces(width, self.shape.lanes)]
            offset += width
        return found
