"""A plan as the slots of the ``stream`` template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from attnc.analyse.visibility import I_HI, I_LO, J_HI, J_LO, Visibility
from attnc.backends.tvm.emit import Emitter, Scope, Stored, Vector, always_inside, width_of
from attnc.ir import build
from attnc.ir.nodes import Dot, Literal, Node, Read, Reduce, Slice, Token
from attnc.ir.program import Program
from attnc.ir.traverse import contains, postorder
from attnc.plan import Pass, Plan
from attnc.templates.tvm.memory import Scratch
from attnc.templates.tvm.products import pieces
from attnc.templates.tvm.values import Value, constant, select
from attnc.templates.tvm.walk import Product, Sum, Walk

_B, _H, _G, _I, _J, _ROW = (build.index(name) for name in ("b", "h", "g", "i", "j", "row"))
_TASK = frozenset("bh")
_ROWS = frozenset("bhi")
_KEYS = frozenset("bhj")


@dataclass(frozen=True, slots=True)
class Stage:
    """A pass with its distinct dot products and shifts found."""

    walk: Walk
    dots: tuple[Node, ...]
    shifts: tuple[Node, ...]
    maxima: tuple[Node, ...]
    totals: tuple[Node, ...]
    weights: tuple[Node, ...]
    values: tuple[Node, ...]


def stage_of(step: Pass, mask: Node, dtype: str, real: str) -> Stage:
    """Lay out a pass: which plane holds which product, kept term and weight."""
    maxima = [s for s in step.statistics if s.op == "max"]
    totals = [s for s in step.statistics if s.op == "sum"]
    terms = [mask, *(s.term for s in step.statistics), *(a.term for a in step.accumulators)]
    dots = tuple(node for node in postorder(*terms) if is_product(node))
    shifts = tuple(dict.fromkeys(part.shift for part in step.parts if part.shift is not None))
    kept = {s.term for s in maxima}
    later = [mask, *(s.term for s in totals), *(a.term for a in step.accumulators)]
    alive = {node for node in postorder(*later, stop=kept) if is_product(node)} - kept
    planes = len(dots)
    free = [k for k, dot in enumerate(dots) if dot not in alive and dot not in kept]
    places: dict[Node, int] = {dot: k for k, dot in enumerate(dots) if dot in kept}
    for s in maxima:
        if s.term not in places:
            if free:
                places[s.term] = free.pop(0)
            else:
                places[s.term], planes = planes, planes + 1
    convert = {"f32": "float32", "f64": "float64"}.get(dtype) != real
    number = {shift: k for k, shift in enumerate(shifts)}
    walk = Walk(
        products=tuple(product_of(dot, convert) for dot in dots),
        maxima=tuple((s.name, places[s.term]) for s in maxima),
        totals=tuple((s.name, None if s.shift is None else number[s.shift]) for s in totals),
        sums=tuple(
            Sum(
                a.name,
                width_of(a.value.width),
                None if a.shift is None else number[a.shift],
                k,
                convert or not in_place(a.value),
                "i" in a.value.axes,
                in_place(a.value),
            )
            for k, a in enumerate(step.accumulators)
        ),
        shifts=len(shifts),
        planes=max(planes, len(step.accumulators)),
    )
    return Stage(
        walk,
        dots,
        shifts,
        tuple(s.term for s in maxima),
        tuple(s.term for s in totals),
        tuple(a.term for a in step.accumulators),
        tuple(a.value for a in step.accumulators),
    )


def is_product(node: Node) -> TypeGuard[Dot]:
    """Whether a node is a dot product, or another reduction over d, that varies with query and key."""
    return isinstance(node, Dot | Reduce) and {"i", "j"} <= node.axes


def product_of(node: Node, convert: bool) -> Product:
    """How the template is to compute a node that :func:`is_product`."""
    if isinstance(node, Dot) and "j" not in node.a.axes and "i" not in node.b.axes:
        return Product(width_of(node.a.width), convert or not in_place(node.b), placed=in_place(node.b))
    return Product(1, False, by_pair=True)


def in_place(vector: Node) -> bool:
    """Whether a key vector is read where it lies: a token's, or one a key of a tensor that has every key."""
    while isinstance(vector, Slice):
        vector = vector.x
    if isinstance(vector, Token):
        return True
    return (
        isinstance(vector, Read)
        and all(
            at is None or (at in (_B, _H, _G, _J) and always_inside(at, dim))
            for at, dim in zip(vector.indices, vector.input.dims, strict=True)
        )
        and vector.indices[-1] is None
    )


def raw_vectors(program: Program, emitter: Emitter, scope: Scope) -> dict[Node, Vector]:
    """Readers of the raw vectors of the row and of the key that ``scope`` is at."""
    D, E = (build.literal(width) for width in program.widths or (0, 0))
    result: dict[Node, Vector] = {}
    if scope.find(_ROW) is not None:
        result[build.token("q", D)] = _reader(emitter, scope, "q", _H, _ROW)
    for name, width in (("k", D), ("v", E)):
        for index in (_I, _J):
            if scope.find(index) is not None:
                token = replace(build.token(name, width), axes=frozenset("bh") | index.axes)
                result[token] = _reader(emitter, scope, name, _G, index)
    return result


def _reader(emitter: Emitter, scope: Scope, name: str, head: Node, index: Node) -> Vector:
    tensor = emitter.tensors[name]

    def read(start: Value | int, lanes: int) -> Value:
        at = scope.value(index)
        inside = None
        if index is _I:
            inside = ((at >= 0) & (at < emitter.sizes["N"])).keep()
            at = select(inside, at, 0)
        offset = tensor.offset(scope.value(_B), scope.value(head), at)
        first = start.to("int64") if isinstance(start, Value) else start
        x = tensor.load(offset + first, emitter.type, lanes)
        return x if inside is None else select(inside, x, constant(0.0, x.type))

    return read


class PlanSlots:
    """The slots of a whole plan (:class:`attnc.templates.tvm.walk.Slots`)."""

    def __init__(
        self,
        plan: Plan,
        visibility: Visibility,
        emitter: Emitter,
        dtype: str,
        lse: bool = False,
        saved: tuple[str, ...] = (),
    ) -> None:
        self.plan, self.visibility, self.emitter, self.lse, self.saved = plan, visibility, emitter, lse, saved
        self.stages = [self._by_twos(stage_of(step, plan.mask, dtype, emitter.type)) for step in plan.passes]
        self.walks = [stage.walk for stage in self.stages]
        self.masked = not (isinstance(plan.mask, Literal) and plan.mask.value is True)
        self.by_data = visibility.by_data and not contains(plan.mask, is_product)

    def _by_twos(self, stage: Stage) -> Stage:
        """A pass whose products say where both vectors lie in tensors as bfloat16, and whose sums, where values do."""
        products = [
            replace(product, twos=product.width % 2 == 0 and self._half(dot.a, _ROW) and self._half(dot.b, _J))
            if isinstance(dot, Dot) and not product.by_pair
            else product
            for dot, product in zip(stage.dots, stage.walk.products, strict=True)
        ]
        values = zip(stage.values, stage.walk.sums, strict=True)
        sums = [replace(total, twos=not total.by_pair and self._half(value, _J)) for value, total in values]
        return replace(stage, walk=replace(stage.walk, products=tuple(products), sums=tuple(sums)))

    def _half(self, vector: Node, index: Node) -> bool:
        """Whether a vector of each row, or of each key, lies in a tensor of bfloat16."""
        while isinstance(vector, Slice):
            vector = vector.x
        match vector:
            case Token(name=name):
                return (name == "q") == (index is _ROW) and self.emitter.tensors[name].dtype == "bf16"
            case Read(input=source, indices=(*at, None)):
                placed = all(
                    one in (_B, _H, _G, index) and always_inside(one, dim)
                    for one, dim in zip(at, source.dims, strict=False)
                    if one is not None
                )
                return placed and None not in at and self.emitter.input(source).dtype == "bf16"
        return False

    def width_of_sum(self, name: str) -> int:
        """Elements of an accumulator; 1 of a statistic."""
        return next((total.width for walk in self.walks for total in walk.sums if total.name == name), 1)

    def task_scope(self, b: Value, h: Value, scratch: Scratch) -> Scope:
        """Scope of one head of one batch row."""
        outer = self.emitter.scope(scratch, {_B: b, _H: h})
        g = outer.value(self.plan.program.group)
        scope = outer.inner({_G: g})
        terms = (x for s in self.stages for x in (*s.maxima, *s.totals, *s.weights))
        roots = [self.plan.mask, self.plan.output, *terms]
        scope.prepare([root for root in roots if not root.is_vector], _TASK)
        return scope

    def task(self, b: Value, h: Value, scratch: Scratch) -> Task:
        return Task(self, self.task_scope(b, h, scratch))


class Task:
    """One head of one batch row (:class:`attnc.templates.tvm.walk.TaskSlots`)."""

    def __init__(self, slots: PlanSlots, scope: Scope) -> None:
        self._slots, self._scope = slots, scope
        self._emitter = slots.emitter
        self._row_axes, self._key_axes = _ROWS, _KEYS

    def at_row(self, row: Value) -> Scope:
        """Scope of one row, or of a vector of rows."""
        sizes = self._emitter.sizes
        return self._scope.inner({_ROW: row, _I: (row + (sizes["N"] - sizes["M"])).keep()})

    def at_key(self, walk: int, j: Value) -> Scope:
        stage = self._slots.stages[walk]
        scope = self._at(j)
        scope.prepare([self._slots.plan.mask, *stage.maxima, *stage.totals, *stage.weights], self._key_axes)
        return scope

    def _at(self, j: Value) -> Scope:
        """Scope of one key."""
        return self._scope.inner({_J: j})

    def _place(self, node: Node, scope: Scope) -> tuple[Stored, Value]:
        """Where the first element of a vector that lies in a tensor is."""
        start = 0
        while isinstance(node, Slice):
            start += width_of(node.lo)
            node = node.x
        match node:
            case Token(name=name):
                tensor = self._emitter.tensors[name]
                at = (_B, _H, _ROW) if name == "q" else (_B, _G, _J)
                offset = tensor.offset(*(scope.value(index) for index in at))
            case Read(input=source, indices=indices):
                tensor = self._emitter.input(source)
                zero = constant(0, "int32")
                offset = tensor.offset(*(zero if at is None else scope.value(at) for at in indices))
            case _:
                raise AssertionError(f"{type(node).__name__} is not in a tensor")
        return Stored(tensor, self._emitter.type), offset + start

    def _elements(self, node: Node, scope: Scope, start: int, lanes: int) -> Value:
        return (
            scope.inner({}, vectors=raw_vectors(self._slots.plan.program, self._emitter, scope))
            .element(node, start, lanes)
            .spread(lanes)
        )

    def _dot(self, walk: int, product: int) -> Dot:
        dot = self._slots.stages[walk].dots[product]
        assert isinstance(dot, Dot)
        return dot

    def query(self, walk: int, product: int, row: Value, start: int, lanes: int) -> Value:
        return self._elements(self._dot(walk, product).a, self.at_row(row), start, lanes)

    def key(self, walk: int, product: int, j: Value) -> tuple[Stored, Value]:
        return self._place(self._dot(walk, product).b, self._at(j))

    def key_elements(self, walk: int, product: int, j: Value, start: int, lanes: int) -> Value:
        return self._elements(self._dot(walk, product).b, self._at(j), start, lanes)

    def _at_pair(self, row: Value, j: Value) -> Scope:
        scope = self.at_row(row.keep()).inner({_J: j})
        return scope.inner({}, vectors=raw_vectors(self._slots.plan.program, self._emitter, scope))

    def pair_product(self, walk: int, product: int, row: Value, j: Value) -> Value:
        return self._at_pair(row, j).value(self._slots.stages[walk].dots[product])

    def pair_value(self, walk: int, number: int, row: Value, j: Value, start: int, lanes: int) -> Value:
        return self._at_pair(row, j).element(self._slots.stages[walk].values[number], start, lanes).spread(lanes)

    def value(self, walk: int, number: int, j: Value) -> tuple[Stored, Value]:
        return self._place(self._slots.stages[walk].values[number], self._at(j))

    def value_elements(self, walk: int, number: int, j: Value, start: int, lanes: int) -> Value:
        return self._elements(self._slots.stages[walk].values[number], self._at(j), start, lanes)

    def ranges(self, i_lo: Value, i_hi: Value) -> list[tuple[Value, Value, Value, Value]]:
        scope = self._scope.inner({I_LO: i_lo, I_HI: i_hi})
        return [
            (scope.value(r.lo), scope.value(r.hi), scope.value(r.full_lo), scope.value(r.full_hi))
            for r in self._slots.visibility.key_ranges
        ]

    def empty(self, i_lo: Value, i_hi: Value, j_lo: Value, j_hi: Value) -> Value | None:
        return self._of_tile(self._slots.visibility.empty, i_lo, i_hi, j_lo, j_hi)

    def full(self, i_lo: Value, i_hi: Value, j_lo: Value, j_hi: Value) -> Value | None:
        return self._of_tile(self._slots.visibility.full, i_lo, i_hi, j_lo, j_hi)

    def _of_tile(self, node: Node, i_lo: Value, i_hi: Value, j_lo: Value, j_hi: Value) -> Value | None:
        if isinstance(node, Literal) and node.value is False:
            return None
        return self._scope.inner({I_LO: i_lo, I_HI: i_hi, J_LO: j_lo, J_HI: j_hi}).value(node)

    def rows(self, walk: int, row: Value, state: dict[str, Value]) -> RowVector:
        stage = self._slots.stages[walk]
        scope = self.at_row(row).inner(self._states(state))
        known = set(state)
        roots = [self._slots.plan.mask, *stage.maxima, *stage.totals, *stage.weights]
        if known:
            scope.prepare(roots, self._row_axes)
        else:
            scope.prepare([self._slots.plan.mask], self._row_axes)
        return RowVector(self._slots, stage, scope)

    @staticmethod
    def _states(state: dict[str, Value]) -> dict[Node, Value]:
        return {build.state(name): value for name, value in state.items()}

    def finish(self, row: Value, state: dict[str, Value], sums: dict[str, Vector]) -> None:
        plan, emitter = self._slots.plan, self._emitter
        at_row = self.at_row(row)
        vectors = raw_vectors(self._slots.plan.program, self._emitter, at_row)
        for stage in self._slots.stages:
            for total in stage.walk.sums:
                vectors[build.state(total.name, build.literal(total.width))] = sums[total.name]
        scope = at_row.inner(self._states(state), vectors=vectors)
        out = emitter.tensors["out"]
        start_of_row = out.offset(*(scope.value(at) for at in (_B, _H, _ROW))).keep()
        for start, lanes in pieces(width_of(plan.output.width), emitter.lanes):
            out.store(start_of_row + start, scope.element(plan.output, start, lanes).spread(lanes))
        if self._slots.lse:
            assert plan.lse is not None
            lse = emitter.tensors["lse"]
            lse.store(lse.offset(*(scope.value(at) for at in (_B, _H, _ROW))), scope.value(plan.lse))
        for name in self._slots.saved:
            tensor = emitter.tensors[f"saved {name}"]
            place = tensor.offset(*(scope.value(at) for at in (_B, _H, _ROW))).keep()
            if name in state:
                tensor.store(place, state[name])
            else:
                width = self._slots.width_of_sum(name)
                for start, lanes in pieces(width, emitter.lanes):
                    tensor.store(place + start, sums[name](start, lanes))

    def nothing(self, row: Value) -> None:
        plan, emitter = self._slots.plan, self._emitter
        scope = self.at_row(row)
        at = [scope.value(index) for index in (_B, _H, _ROW)]
        out = emitter.tensors["out"]
        start_of_row = out.offset(*at).keep()
        for start, lanes in pieces(width_of(plan.output.width), emitter.lanes):
            out.store(start_of_row + start, constant(0.0, emitter.type).spread(lanes))
        if self._slots.lse:
            lse = emitter.tensors["lse"]
            lse.store(lse.offset(*at), constant(float("-inf"), emitter.type))
        for name in self._slots.saved:
            tensor = emitter.tensors[f"saved {name}"]
            place = tensor.offset(*at).keep()
            for start, lanes in pieces(self._slots.width_of_sum(name), emitter.lanes):
                tensor.store(place + start, constant(0.0, emitter.type).spread(lanes))


class RowVector:
    """A vector of rows (:class:`attnc.templates.tvm.walk.RowSlots`)."""

    made: type[Pair]
    """What a pair is."""

    def __init__(self, slots: PlanSlots, stage: Stage, scope: Scope) -> None:
        self._slots, self._stage, self._scope = slots, stage, scope

    def shifts(self) -> list[Value]:
        return [self._scope.value(shift) for shift in self._stage.shifts]

    def pair(self, key: Scope, planes: Sequence[Value], *, kept: bool) -> Pair:
        stage = self._stage
        values: dict[Node, Value] = {}
        if planes:
            taken = {plane for _, plane in stage.walk.maxima} if kept else set()
            values = {dot: planes[k] for k, dot in enumerate(stage.dots) if k not in taken}
        if kept:
            values |= {term: planes[plane] for term, (_, plane) in zip(stage.maxima, stage.walk.maxima, strict=True)}
        return self.made(self._slots, stage, self._scope.inner(values, key))


class Pair:
    """One key against a vector of rows (:class:`attnc.templates.tvm.walk.PairSlots`)."""

    def __init__(self, slots: PlanSlots, stage: Stage, scope: Scope) -> None:
        self._slots, self._stage, self._scope = slots, stage, scope

    def visible(self) -> Value:
        return self._scope.value(self._slots.plan.mask)

    def maxima(self) -> list[Value]:
        return [self._scope.value(term) for term in self._stage.maxima]

    def totals(self) -> list[Value]:
        return [self._scope.value(term) for term in self._stage.totals]

    def weights(self) -> list[Value]:
        return [self._scope.value(term) for term in self._stage.weights]


RowVector.made = Pair
