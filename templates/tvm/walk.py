"""What a spec decides in the ``stream`` family: the slots, as protocols, and the shape of a walk over the keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from attnc.templates.tvm.memory import Scratch
from attnc.templates.tvm.values import Value


@dataclass(frozen=True, slots=True)
class Product:
    """One dot product.

    Attributes:
        width: of its vectors.
        convert: keys must be converted to the type of the arithmetic, or computed, before they are used often.
        by_pair: its vectors are others for each pair.
        placed: keys lie in a tensor, if perhaps as another type.
        twos: both vectors lie in tensors as bfloat16, and have an even width.
    """

    width: int
    convert: bool
    by_pair: bool = False
    placed: bool = False
    twos: bool = False


@dataclass(frozen=True, slots=True)
class Sum:
    """An accumulator: the plane its weights go to, its shift if any, and of its value what :class:`Product` has."""

    name: str
    width: int
    shift: int | None
    plane: int
    convert: bool
    by_pair: bool = False
    placed: bool = False
    twos: bool = False


@dataclass(frozen=True, slots=True)
class Walk:
    """One pass over the keys: what it computes, by name and number.

    Attributes:
        products: dot products; product ``k`` fills plane ``k``.
        maxima: names of running maxima, and the plane where each one's term is kept for the second look.
        totals: names of running sums, and the shift of each.
        sums: the accumulators.
        shifts: how many shifts there are.
        planes: tiles ``[key, row]`` of numbers that are needed at once.
    """

    products: tuple[Product, ...]
    maxima: tuple[tuple[str, int], ...]
    totals: tuple[tuple[str, int | None], ...]
    sums: tuple[Sum, ...]
    shifts: int
    planes: int


class PairSlots(Protocol):
    """One key against one vector of rows."""

    def visible(self) -> Value: ...

    def maxima(self) -> Sequence[Value]: ...

    def totals(self) -> Sequence[Value]: ...

    def weights(self) -> Sequence[Value]: ...


class RowSlots(Protocol):
    """One vector of rows, with the running statistics as they are."""

    def shifts(self) -> Sequence[Value]: ...

    def pair(self, key: Any, planes: Sequence[Value], *, kept: bool) -> PairSlots:
        """``planes`` hold the products or, if ``kept``, the terms of the maxima where those were put."""
        ...


class TaskSlots(Protocol):
    """One tile of rows of one head."""

    def query(self, walk: int, product: int, row: Value, start: int, lanes: int) -> Value: ...

    def key(self, walk: int, product: int, j: Value) -> tuple[Any, Value]: ...

    def key_elements(self, walk: int, product: int, j: Value, start: int, lanes: int) -> Value: ...

    def value(self, walk: int, number: int, j: Value) -> tuple[Any, Value]: ...

    def value_elements(self, walk: int, number: int, j: Value, start: int, lanes: int) -> Value: ...

    def pair_product(self, walk: int, product: int, row: Value, j: Value) -> Value: ...

    def pair_value(self, walk: int, number: int, row: Value, j: Value, start: int, lanes: int) -> Value: ...

    def ranges(self, i_lo: Value, i_hi: Value) -> Sequence[tuple[Value, Value, Value, Value]]: ...

    def empty(self, i_lo: Value, i_hi: Value, j_lo: Value, j_hi: Value) -> Value | None: ...

    def full(self, i_lo: Value, i_hi: Value, j_lo: Value, j_hi: Value) -> Value | None: ...

    def at_key(self, walk: int, j: Value) -> Any: ...

    def rows(self, walk: int, row: Value, state: dict[str, Value]) -> RowSlots: ...

    def finish(
        self, row: Value, state: dict[str, Value], sums: dict[str, Callable[[Value | int, int], Value]]
    ) -> None: ...

    def nothing(self, row: Value) -> None: ...


class Slots(Protocol):
    """A spec. ``masked`` is false where every pair is visible; ``by_data`` asks for tiles to be looked at first."""

    masked: bool
    by_data: bool

    @property
    def walks(self) -> Sequence[Walk]: ...

    def task(self, b: Value, h: Value, scratch: Scratch) -> TaskSlots: ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a call."""

    B: Value
    H: Value
    M: Value
    N: Value
