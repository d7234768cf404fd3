"""A plan as the slots of the templates in ``templates/tvm/cuda``.

Everything that a spec decides comes from :mod:`attnc.backends.tvm.slots`; what is added says where vectors lie, so that
tiles of them can be copied, and cuts the end of a row into elements.
"""

from __future__ import annotations

from typing import Any

from attnc.backends.tvm.cuda.device import DeviceTensor
from attnc.backends.tvm.cuda.problems import by_element, is_lanewise
from attnc.backends.tvm.emit import Scope, Vector, always_inside, width_of
from attnc.backends.tvm.slots import PlanSlots, Task, in_place, raw_vectors
from attnc.ir import build
from attnc.ir.nodes import Node, Read, Slice, Token
from attnc.templates.tvm.cuda.block import LocalScratch
from attnc.templates.tvm.cuda.copies import CHUNK, Source
from attnc.templates.tvm.cuda.slots import Elements
from attnc.templates.tvm.memory import Memory
from attnc.templates.tvm.values import Value, constant, select

_B, _H, _G, _ROW = (build.index(name) for name in ("b", "h", "g", "row"))
BYTES = {"bf16": 2, "f16": 2, "f32": 4}


class BlockSlots(PlanSlots):
    """The slots of a whole plan (:class:`attnc.templates.tvm.cuda.slots.BlockSlots`)."""

    wide: frozenset[str] = frozenset()

    @property
    def output(self) -> int:
        return width_of(self.plan.output.width)

    @property
    def by_element(self) -> bool:
        return is_lanewise(self.plan.output)

    def block_task(self, b: Value, h: Value, scratch: LocalScratch) -> BlockTask:
        return BlockTask(self, self.task_scope(b, h, scratch))


class BlockTask(Task):
    """One tile of rows of one head (:class:`attnc.templates.tvm.cuda.slots.BlockTaskSlots`)."""

    def query_source(self, walk: int, product: int) -> Source:
        node = self._dot(walk, product).a

        def element(row: Value, start: Any) -> Value:
            return self._elements(node, self.at_row(row), start, 1)

        return self._source(node, element, row=True)

    def key_source(self, walk: int, product: int) -> Source:
        node = self._dot(walk, product).b
        return self._source(node, lambda j, start: self._elements(node, self._at(j), start, 1), row=False)

    def value_source(self, walk: int, number: int) -> Source:
        node = self._slots.stages[walk].values[number]
        return self._source(node, lambda j, start: self._elements(node, self._at(j), start, 1), row=False)

    def _source(self, node: Node, element: Any, *, row: bool) -> Source:
        width = width_of(node.width)
        tensor, start = self._tensor_of(node, row=row)
        if tensor is None:
            return Source(width, element, by_element(node))

        def where(at: Value) -> tuple[Memory, Value]:
            stored, place = self._place(node, self.at_row(at) if row else self._at(at))
            return stored.tensor.memory, place

        return Source(width, element, True, where, self._aligned(tensor, start, width))

    def _tensor_of(self, node: Node, *, row: bool) -> tuple[DeviceTensor | None, int]:
        """The tensor that a vector lies in as it is multiplied, and its first element there."""
        if not (_lies_by_row(node) if row else in_place(node)):
            return None, 0
        start = 0
        while isinstance(node, Slice):
            start += width_of(node.lo)
            node = node.x
        assert isinstance(node, Token | Read)
        tensor = self._emitter.tensors[node.name] if isinstance(node, Token) else self._emitter.input(node.input)
        assert isinstance(tensor, DeviceTensor)
        return (tensor, start) if tensor.dtype == self._emitter.tensors["q"].dtype else (None, 0)

    @staticmethod
    def _aligned(tensor: DeviceTensor, start: int, width: int) -> Value | None:
        """Whether every row begins where a copy of 16 bytes may; ``None`` where it cannot."""
        size = BYTES[tensor.dtype]
        if start * size % CHUNK or width * size % CHUNK:
            return None
        found = (tensor.address & (CHUNK - 1)).equals(0)
        for stride in tensor.strides[:-1]:
            found = found & ((stride * size) & (CHUNK - 1)).equals(0)
        return found.keep()

    def finish_element(
        self, row: Value, element: Value, seen: Value, state: dict[str, Value], sums: dict[str, Elements]
    ) -> None:
        slots, emitter = self._slots, self._emitter
        scope = self._final(row, state, sums)
        out = emitter.tensors["out"]
        place = out.offset(*(scope.value(at) for at in (_B, _H, _ROW))) + element.to("int64")
        x = scope.element(slots.plan.output, element, 1)
        out.store(place.keep(), select(seen, x, constant(0.0, x.type)).keep())

    def finish_numbers(self, row: Value, seen: Value, state: dict[str, Value]) -> None:
        if not self._slots.lse:
            return
        scope = self._final(row, state, {})
        assert self._slots.plan.lse is not None
        lse = self._emitter.tensors["lse"]
        x = select(seen, scope.value(self._slots.plan.lse), constant(float("-inf"), self._emitter.type))
        lse.store(lse.offset(*(scope.value(at) for at in (_B, _H, _ROW))), x)

    def _final(self, row: Value, state: dict[str, Value], sums: dict[str, Elements]) -> Scope:
        """Scope of a row with its final states."""
        at_row = self.at_row(row)
        vectors: dict[Node, Vector] = raw_vectors(self._slots.plan.program, self._emitter, at_row)
        for stage in self._slots.stages:
            for total in stage.walk.sums:
                if total.name in sums:
                    vectors[build.state(total.name, build.literal(total.width))] = sums[total.name]
        return at_row.inner(self._states(state), vectors=vectors)


def _lies_by_row(vector: Node) -> bool:
    """Whether a query vector is read where it lies."""
    while isinstance(vector, Slice):
        vector = vector.x
    if isinstance(vector, Token):
        return vector.name == "q"
    return (
        isinstance(vector, Read)
        and vector.indices[-1] is None
        and all(
            at in (_B, _H, _G, _ROW) and at is not None and always_inside(at, dim)
            for at, dim in zip(vector.indices[:-1], vector.input.dims, strict=False)
        )
    )
