"""Expressions of the IR as TIR values.

A :class:`Scope` is a place in the kernel where some atoms have values: a task (``b h g``), a vector of rows
(``i``, the running statistics), a key (``j``), a pair. Scopes nest; a node is computed in the outermost scope that
was asked for it and found from the inner ones, so what does not depend on the key is computed once a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from tvm.tirx.script.builder import ir as T

from attnc.backends.tvm.arguments import SIZES, Layout
from attnc.backends.tvm.operations import operation
from attnc.ir.nodes import (
    Apply,
    Axes,
    Dot,
    Index,
    Input,
    Kind,
    Literal,
    MatVec,
    Node,
    Param,
    Read,
    Reduce,
    Rope,
    Size,
    Slice,
)
from attnc.templates.tvm import functions
from attnc.templates.tvm.lanes import join, max_of_lanes, sum_of_lanes, vector_of
from attnc.templates.tvm.memory import Scratch, pointer
from attnc.templates.tvm.processor import fma
from attnc.templates.tvm.products import index, pieces
from attnc.templates.tvm.values import Value, constant, maximum, select

STORED = {
    "bf16": "uint16",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "i32": "int32",
    "i64": "int64",
    "bool": "int8",
}
"""Element types in memory. ``bf16`` is converted by hand: its bits are the upper half of a ``float32``."""

IN_BOUNDS = {"b": "B", "h": "H", "g": "G", "row": "M", "j": "N"}
"""Which dimension each index is always inside of."""


class Words(Protocol):
    """The words of a call, in the order of :class:`attnc.backends.tvm.arguments.Layout`, as ``int64``."""

    def load(self, at: int) -> Value: ...


class Tensor:
    """A tensor argument inside a kernel: its memory, strides and stored element type (``bf16``, ``f32``, ...)."""

    stored: ClassVar[Mapping[str, str]] = STORED

    def __init__(self, name: str, dtype: str, rank: int, layout: Layout, integers: Words) -> None:
        at = layout.at_tensor(name)
        self.dtype = dtype
        self.address = integers.load(at).keep()
        self.memory = pointer(self.address, self.stored[dtype], name)
        self.strides = [integers.load(at + 1 + k).keep() for k in range(rank)]

    def offset(self, *indices: Value) -> Value:
        """Of an element, in elements; trailing dimensions may be left out. ``int64``."""
        result = constant(0, "int64")
        for at, stride in zip(indices, self.strides, strict=False):
            result = result + at.to("int64") * stride
        return result

    def load(self, offset: Value, type: str, lanes: int = 1) -> Value:
        """Elements as ``type``: the type of the arithmetic, ``int32`` or ``bool``."""
        raw = self.memory.load(offset, lanes)
        if self.dtype == "bf16":
            return (raw.to("int32") << 16).bits("float32").to(type)
        return raw.to(type)

    def store(self, offset: Value, value: Value) -> None:
        """Write adjacent elements, rounding to nearest even."""
        if self.dtype == "bf16":
            value = value.to("float32").keep()
            bits = value.bits("int32").keep()
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            value = select(value.equals(value), rounded, 0x7FC0).to("uint16")
        self.memory.store(offset, value.to(STORED[self.dtype]))


@dataclass(frozen=True, slots=True)
class Stored:
    """The memory of a tensor, read as the type of the arithmetic (:class:`attnc.templates.tvm.memory.Memory`)."""

    tensor: Tensor
    type: str

    def load(self, at: Value, lanes: int = 1) -> Value:
        return self.tensor.load(at, self.type, lanes)

    def prefetch(self, at: Value, width: int) -> None:
        self.tensor.memory.prefetch(at, width)


class Emitter:
    """What all scopes of a kernel share: arguments, and the type of the arithmetic."""

    def __init__(
        self,
        layout: Layout,
        tensors: Mapping[str, Tensor],
        integers: Words,
        parameters: Sequence[str],
        type: str,
        lanes: int,
    ) -> None:
        self.type = type
        self.lanes = lanes
        self.tensors = tensors
        self.sizes = {
            name: integers.load(layout.at_size(name)).to("int32").keep() for name in (*SIZES, *layout.extents)
        }
        self.parameters = {
            name: integers.load(layout.at_parameter(number)).bits("float64").keep()
            for number, name in enumerate(parameters)
        }

    def input(self, source: Input) -> Tensor:
        """The argument for an input of the spec."""
        return self.tensors[f"input {source.name}"]

    def scope(self, scratch: Scratch, values: Mapping[Node, Value]) -> Scope:
        """The outermost scope of a task, with the scratch memory of its thread."""
        return Scope(self, scratch, (), dict(values), {})

    def type_of(self, kind: Kind) -> str:
        match kind:
            case Kind.INT:
                return "int32"
            case Kind.BOOL:
                return "bool"
            case Kind.REAL:
                return self.type


class Scope:
    """Values of nodes at one place. ``vectors`` holds where vectors lie that are not read from a tensor."""

    def __init__(
        self,
        emitter: Emitter,
        scratch: Scratch,
        outer: Sequence[Scope],
        values: dict[Node, Value],
        vectors: dict[Node, Vector],
    ) -> None:
        self.emitter = emitter
        self._scratch = scratch
        self._outer = tuple(outer)
        self._values = values
        self._vectors = vectors

    def inner(
        self, values: Mapping[Node, Value], *others: Scope, vectors: Mapping[Node, Vector] | None = None
    ) -> Scope:
        """A scope inside this one (and ``others``) where some nodes have values."""
        return Scope(self.emitter, self._scratch, (self, *others), dict(values), dict(vectors or {}))

    def prepare(self, roots: Sequence[Node], axes: Axes) -> None:
        """Compute here whatever scalars under ``roots`` vary over ``axes`` alone."""
        seen: set[Node] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.axes <= axes and not node.is_vector:
                self.value(node)
            else:
                stack.extend(node.children)

    def find(self, node: Node) -> Value | None:
        """The value of a node that was computed here or outside."""
        if node in self._values:
            return self._values[node]
        for scope in self._outer:
            if (found := scope.find(node)) is not None:
                return found
        return None

    def vector(self, node: Node) -> Vector | None:
        """Where the elements of a vector lie, if not in a tensor."""
        if node in self._vectors:
            return self._vectors[node]
        for scope in self._outer:
            if (found := scope.vector(node)) is not None:
                return found
        return None

    def value(self, root: Node) -> Value:
        """The value of a scalar node, computed here if it was not yet."""
        stack = [root]
        while stack:
            node = stack[-1]
            if self.find(node) is not None:
                stack.pop()
                continue
            missing = [child for child in self._scalar_children(node) if self.find(child) is None]
            if missing:
                stack.extend(missing)
                continue
            self._values[node] = self._compute(node).keep()
            stack.pop()
        found = self.find(root)
        assert found is not None
        return found

    @staticmethod
    def _scalar_children(node: Node) -> list[Node]:
        if isinstance(node, Dot | Reduce):
            return []
        return [child for child in node.children if not child.is_vector]

    def _compute(self, node: Node) -> Value:
        match node:
            case Literal(kind=kind, value=number):
                return constant(number, self.emitter.type_of(kind))
            case Size(name=name):
                return self.emitter.sizes[name]
            case Param(kind=kind, name=name):
                return self.emitter.parameters[name].to(self.emitter.type_of(kind))
            case Apply(op=op, args=args):
                return operation(op, args, [self._values_of(arg) for arg in args], self.emitter.type)
            case Read():
                return self.read(node)
            case Dot(a=a, b=b):
                return self._reduce("sum", a.width, lambda at, n: self.element(a, at, n) * self.element(b, at, n))
            case Reduce(op=op, over="d", x=x):
                return self._reduce(op, x.width, lambda at, n: self.element(x, at, n))
        raise AssertionError(f"{type(node).__name__} has no value here")

    def _values_of(self, node: Node) -> Value:
        found = self.find(node)
        assert found is not None
        return found

    def _reduce(self, op: str, width: Node | None, part: Callable[[int, int], Value]) -> Value:
        total: dict[int, Value] = {}
        for start, lanes in pieces(width_of(width), self.emitter.lanes):
            x = part(start, lanes)
            if lanes in total:
                x = total[lanes] + x if op == "sum" else maximum(total[lanes], x)
            total[lanes] = x.keep()
        folded = [sum_of_lanes(x) if op == "sum" else max_of_lanes(x) for x in total.values()]
        result = folded[0]
        for x in folded[1:]:
            result = result + x if op == "sum" else maximum(result, x)
        return result

    def read(self, node: Read, starts: Sequence[Value | int] = (), lanes: int = 1) -> Value:
        """An element of an input, or ``lanes`` of them along its last axis; 0 where an index is outside.

        ``starts`` are the places on the open axes, in order.
        """
        tensor = self.emitter.input(node.input)
        offset, inside, given = constant(0, "int64"), None, iter(starts)
        for dim, at, stride in zip(node.input.dims, node.indices, tensor.strides, strict=True):
            if at is None:
                start = next(given)
                place = start if isinstance(start, Value) else constant(start, "int32")
            else:
                place = self.value(at)
                if not always_inside(at, dim):
                    ok = ((place >= 0) & (place < self.value(dim))).keep()
                    place = select(ok, place, 0)
                    inside = ok if inside is None else inside & ok
            offset = offset + place.to("int64") * stride
        result = tensor.load(offset, self.emitter.type_of(node.kind), lanes)
        return result if inside is None else select(inside, result, constant(0, result.type))

    def element(self, node: Node, start: Any, lanes: int) -> Value:
        """Elements ``start`` to ``start + lanes`` of a vector; of a scalar, its value."""
        return self._element(node, start, lanes, {})

    def _element(self, node: Node, start: int, lanes: int, memo: dict[tuple[Node, int, int], Value]) -> Value:
        key = (node, start, lanes)
        if key not in memo:
            memo[key] = self._compute_element(node, start, lanes, memo).keep()
        return memo[key]

    def _compute_element(self, node: Node, start: int, lanes: int, memo: dict[tuple[Node, int, int], Value]) -> Value:
        if not node.is_vector:
            return self.value(node)
        if (held := self.vector(node)) is not None:
            return held(start, lanes)
        match node:
            case Read():
                return self.read(node, (start,), lanes)
            case Apply(op=op, args=args):
                return operation(op, args, [self._element(a, start, lanes, memo) for a in args], self.emitter.type)
            case Slice(x=x, lo=Literal(value=lo)):
                return self._element(x, start + int(lo), lanes, memo)
            case Rope():
                return self._rope(node, start, lanes)
            case MatVec(x=x, matrix=matrix):
                return self._matvec(x, matrix, start, lanes)
        raise AssertionError(f"{type(node).__name__} has no elements here")

    def hold(self, node: Node) -> None:
        """Compute a vector here once, into memory, for those that read its elements out of order."""
        if self.vector(node) is None and not isinstance(node, Read):
            memory = self._scratch.take(width_of(node.width), self.emitter.type, "vector")
            for start, lanes in pieces(width_of(node.width), self.emitter.lanes):
                memory.store(start, self.element(node, start, lanes).spread(lanes))
            self._vectors[node] = lambda at, n: memory.load(at, n)

    def _rope(self, node: Rope, start: int, lanes: int) -> Value:
        self.hold(node.x)
        rotated = width_of(node.rotated)
        half = rotated // 2
        if start >= rotated:
            return self.element(node.x, start, lanes)
        for cut in (half, rotated):
            if start < cut < start + lanes:
                return join([self._rope(node, start + k, 1) for k in range(lanes)])
        first = start if start < half else start - half
        base = node.base
        if isinstance(base, Literal):
            turns = [float(base.value) ** (-2.0 * (first + k) / rotated) for k in range(lanes)]
            frequency = vector_of(turns, "float64")
        else:
            powers = vector_of([-2.0 * (first + k) / rotated for k in range(lanes)], "float64")
            frequency = functions.exp(functions.log(self.value(base).to("float64")) * powers)
        angle = (self.value(node.position).to("float64") * frequency).keep()
        if self.emitter.type == "float64":
            sine, cosine = functions.sin(angle), functions.cos(angle)
        else:
            sine, cosine = functions.sin_cos(angle)
        x = self.element(node.x, start, lanes)
        if start < half:
            return x * cosine - self.element(node.x, start + half, lanes) * sine
        return x * cosine + self.element(node.x, start - half, lanes) * sine

    def _matvec(self, x: Node, matrix: Read, start: int, lanes: int) -> Value:
        self.hold(x)
        total = self._scratch.take(lanes, self.emitter.type, "product")
        total.store(0, constant(0.0, self.emitter.type).spread(lanes))
        with T.serial(width_of(x.width)) as row:
            d = index(row)
            held = self.vector(x)
            factor = held(d, 1) if held else self.read(x, (d,))  # type: ignore[arg-type]
            total.store(0, fma(factor.spread(lanes), self.read(matrix, (d, start), lanes), total.load(0, lanes)))
        return total.load(0, lanes)


Vector = Callable[[Any, int], Value]
"""Elements of a vector from ``start`` (an ``int``, or a scalar value) on: ``(start, lanes) -> value``."""


def width_of(node: Node | None) -> int:
    """A static width."""
    assert isinstance(node, Literal), "widths are numbers by now"
    return int(node.value)


def always_inside(at: Node, dim: Node) -> bool:
    """Whether an index is within its dimension whatever the call."""
    match at, dim:
        case Index(name=name), Size(name=size):
            return IN_BOUNDS.get(name) == size
        case Literal(value=number), Literal(value=size):
            return 0 <= number < size
    return False
