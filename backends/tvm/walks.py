"""The walks and scatters of a backward as slots of the templates.

A walk over the rows is the ``stream`` template with rows and keys exchanged: tiles of keys, each walking over the
rows that see it. What the template calls a row is then a key.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal as OneOf

from attnc.analyse.gradient.backward import Scatter, Sum, Walk
from attnc.analyse.visibility import J_HI, J_LO, Visibility
from attnc.backends.tvm.emit import Emitter, Scope, Tensor, Vector, always_inside, width_of
from attnc.backends.tvm.slots import Pair, PlanSlots, RowVector, Stage, Task, is_product
from attnc.ir import build
from attnc.ir.nodes import Apply, Dot, Node, Read, Slice, Token
from attnc.ir.traverse import rewrite
from attnc.plan import Accumulator, Pass, Plan, Statistic
from attnc.templates.tvm.memory import Scratch
from attnc.templates.tvm.products import pieces
from attnc.templates.tvm.values import Value, constant
from attnc.templates.tvm.walk import Product

_B, _H, _G, _I, _J, _ROW = (build.index(name) for name in ("b", "h", "g", "i", "j", "row"))
_TASK, _ROWS, _KEYS = frozenset("bh"), frozenset("bhi"), frozenset("bhj")

Over = OneOf["keys", "rows"]


class WalkSlots(PlanSlots):
    """The slots of a walk, or of a scatter; ``seen`` takes a flag for each row (or key): is it in a visible pair?"""

    def __init__(
        self,
        plan: Plan,
        step: Walk | Scatter,
        visibility: Visibility,
        emitter: Emitter,
        dtype: str,
        seen: Tensor | None,
    ) -> None:
        self.over: Over = step.over if isinstance(step, Walk) else "keys"
        self.seen = seen
        self.results: tuple[Sum, ...] = step.sums if isinstance(step, Walk) else ()
        self.indices = step.indices if isinstance(step, Scatter) else ()
        self.target = step.result if isinstance(step, Scatter) else None
        if isinstance(step, Walk):
            totals = [Statistic(s.result.name, "sum", s.term) for s in step.sums if s.value is None]
            sums = [Accumulator(s.result.name, s.term, s.value) for s in step.sums if s.value is not None]
        else:
            totals, sums = [Statistic("term", "sum", step.term)], []
        memo: dict[Node, Node] = {}

        def ready(root: Node) -> Node:
            return rewrite(root, self._ready, memo)

        single = Pass(
            tuple(replace(total, term=ready(total.term)) for total in totals),
            tuple(replace(one, term=ready(one.term)) for one in sums),
        )
        plan = replace(plan, mask=ready(plan.mask), passes=(single,), output=build.literal(0.0), lse=None)
        super().__init__(plan, visibility, emitter, dtype)
        self.stages = [self._laid_out(stage) for stage in self.stages]
        self.walks = [stage.walk for stage in self.stages]

    def _ready(self, node: Node) -> Node:
        """Outer before inner in dot products; what a pair is divided by is inverted once a row or key."""
        match node:
            case Dot(a=a, b=b) if is_product(node) and ("j" in a.axes) == (self.over == "keys"):
                return build.dot(b, a)
            case Apply(op="div", args=(a, b)) if {"i", "j"} <= a.axes and b.axes and not {"i", "j"} <= b.axes:
                return build.apply("mul", a, build.apply("div", build.literal(1.0), b))
        return node

    def _laid_out(self, stage: Stage) -> Stage:
        products = []
        for dot in stage.dots:
            assert isinstance(dot, Dot)
            products.append(Product(width_of(dot.a.width), self._converts(dot.b)))
        values = zip(stage.walk.sums, stage.values, strict=True)
        sums = [replace(total, convert=self._converts(value), by_pair=False, twos=False) for total, value in values]
        return replace(stage, walk=replace(stage.walk, products=tuple(products), sums=tuple(sums)))

    def _converts(self, vector: Node) -> bool:
        """Whether a vector of the inner side cannot be read where it lies, or has another element type."""
        while isinstance(vector, Slice):
            vector = vector.x
        real = {"float32": "f32", "float64": "f64"}[self.emitter.type]
        inner = _J if self.over == "keys" else _ROW
        match vector:
            case Token(name=name):
                return self.emitter.tensors[name].dtype != real or (name != "q" and "i" in vector.axes)
            case Read(input=source, indices=(*indices, None)):
                inside = all(
                    at in (_B, _H, _G, inner) and always_inside(at, dim)
                    for at, dim in zip(indices, source.dims, strict=False)
                    if at is not None
                )
                return self.emitter.input(source).dtype != real or not inside
        return True

    def task(self, b: Value, h: Value, scratch: Scratch) -> WalkTask:
        scope = self.task_scope(b, h, scratch)
        return _KeyTask(self, scope) if self.over == "rows" else WalkTask(self, scope)


class WalkTask(Task):
    """Tiles of rows that walk over keys."""

    _slots: WalkSlots
    _own = _ROW

    def outer_elements(self, row: Value, start: int, lanes: int, vector: Node) -> Value:
        """Elements of a vector of the outer side."""
        return self._elements(vector, self.at_row(row), start, lanes)

    def rows(self, walk: int, row: Value, state: dict[str, Value]) -> RowVector:
        stage = self._slots.stages[walk]
        scope = self.at_row(row)
        scope.prepare([self._slots.plan.mask, *stage.totals, *stage.weights], self._row_axes)
        return _PlacedRows(self._slots, stage, scope)

    def finish(self, row: Value, state: dict[str, Value], sums: dict[str, Vector]) -> None:
        self._write(row, state, sums)

    def nothing(self, row: Value) -> None:
        self._write(row, None, {})

    def _write(self, row: Value, state: dict[str, Value] | None, sums: dict[str, Vector]) -> None:
        """The sums of one row, or zeros."""
        emitter = self._emitter
        scope = self.at_row(row)
        at = [scope.value(index) for index in (_B, _H, self._own)]
        zero = constant(0.0, emitter.type)
        for one in self._slots.results:
            tensor = emitter.input(one.result)
            place = tensor.offset(*at).keep()
            if one.value is None:
                tensor.store(place, zero if state is None else state[one.result.name])
                continue
            for start, lanes in pieces(width_of(one.value.width), emitter.lanes):
                x = zero.spread(lanes) if state is None else sums[one.result.name](start, lanes)
                tensor.store(place + start, x)
        if self._slots.seen is not None:
            self._slots.seen.store(self._slots.seen.offset(*at), constant(0 if state is None else 1, "int32"))


class _KeyTask(WalkTask):
    """Tiles of keys that walk over rows. Positions of keys are shifted to the axis of rows, and back."""

    _own = _J

    def __init__(self, slots: WalkSlots, scope: Scope) -> None:
        super().__init__(slots, scope)
        self._row_axes, self._key_axes = _KEYS, _ROWS
        self._offset = (self._emitter.sizes["N"] - self._emitter.sizes["M"]).keep()

    def at_row(self, row: Value) -> Scope:
        return self._scope.inner({_J: row})

    def _at(self, j: Value) -> Scope:
        return self._scope.inner({_ROW: j, _I: (j + self._offset).keep()})

    def ranges(self, i_lo: Value, i_hi: Value) -> list[tuple[Value, Value, Value, Value]]:
        ends: dict[Node, Value] = {J_LO: (i_lo + self._offset).keep(), J_HI: (i_hi + self._offset).keep()}
        scope, offset = self._scope.inner(ends), self._offset
        found = []
        for r in self._slots.visibility.row_ranges:
            lo, hi, full_lo, full_hi = (scope.value(end) - offset for end in (r.lo, r.hi, r.full_lo, r.full_hi))
            found.append((lo, hi, full_lo, full_hi))
        return found

    def _of_tile(self, node: Node, i_lo: Value, i_hi: Value, j_lo: Value, j_hi: Value) -> Value | None:
        key_lo, key_hi, row_lo, row_hi = ((x + self._offset).keep() for x in (i_lo, i_hi, j_lo, j_hi))
        return super()._of_tile(node, row_lo, row_hi, key_lo, key_hi)


class _PlacedPair(Pair):
    """A pair that says where its number goes (:class:`attnc.templates.tvm.scatter.PlacedPair`)."""

    _slots: WalkSlots

    def place(self) -> tuple[Value, Value | None]:
        target = self._slots.target
        assert target is not None
        tensor = self._scope.emitter.input(target)
        at = [self._scope.value(index) for index in (_B, _H, *self._slots.indices)]
        inside: Value | None = None
        for index, value, dim in zip(self._slots.indices, at[2:], target.dims[2:], strict=True):
            if not always_inside(index, dim):
                ok = (value >= 0) & (value < self._scope.value(dim))
                inside = ok if inside is None else inside & ok
        return tensor.offset(*at), inside


class _PlacedRows(RowVector):
    made = _PlacedPair
