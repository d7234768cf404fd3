"""What a kernel is called with: arguments named symbolically, so that they can be saved and bound at each call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Value:
    """One run-time argument.

    Attributes:
        type: its Triton type: ``i32``, ``i64``, ``fp32``, ``*bf16`` ...
        kind: where it comes from: the address of a tensor, the stride or the extent of one of its dimensions, a size
            of the call, a parameter of the spec.
        name: of the tensor, the size or the parameter.
        dim: the dimension, for strides and extents.
        divisible: a power of two that it is a multiple of at every call (addresses in bytes).
    """

    type: str
    kind: Literal["tensor", "stride", "extent", "size", "parameter"]
    name: str
    dim: int = 0
    divisible: int = 1


@dataclass(frozen=True, slots=True)
class Box:
    """What one copy by TMA moves of a tensor: the argument is a descriptor.

    Attributes:
        type: of the elements, as in ``Value`` without the star.
        name: of the tensor.
        lo: where the lanes begin, along its last dimension.
        valid: how many lanes there are; 0 for all. Beyond them zeros are read, and nothing is written.
        block: the shape of what is moved, of the rank of the tensor.
    """

    type: str
    name: str
    lo: int
    valid: int
    block: tuple[int, ...]

    @property
    def swizzle(self) -> int:
        """Bytes of a row in shared memory after which rows are permuted; 0 for none."""
        row = self.block[-1] * ELEMENT_BYTES[self.type]
        return min(row, 128) if len(self.block) > 2 and self.block[-2] > 1 else 0

    @property
    def moved(self) -> tuple[int, ...]:
        """The shape that the hardware moves at once: rows no longer than the swizzle."""
        last = self.block[-1]
        return (*self.block[:-1], min(last, self.swizzle // ELEMENT_BYTES[self.type]) if self.swizzle else last)


ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

Arguments: TypeAlias = "Value | Box | tuple[Arguments, ...]"
"""A value, a descriptor, or a tuple of such: kernels take tuples."""

Constant: TypeAlias = "int | float | str | tuple[Constant, ...]"


@dataclass(frozen=True, slots=True)
class Extent:
    """``ceil(size / block)``; a size is a number or a name."""

    size: int | str
    block: int = 1


@dataclass(frozen=True, slots=True)
class Buffer:
    """A contiguous tensor between kernels; ``type`` as in ``Value`` without the star.

    ``like`` names a tensor of the call that it has the shape of, instead of ``extents``. Memory that kernels add to is
    ``zeroed`` first.
    """

    name: str
    type: str
    extents: tuple[Extent, ...]
    like: str = ""
    zeroed: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel and how it is called.

    Attributes:
        name: unique within a plan.
        family: the template: ``stream``, ``hopper``, ``split``, ``token``, ``tiles`` ...
        arguments: run-time arguments by name.
        constants: compile-time arguments by name, slots excepted.
        slots: names of slot functions by argument.
        grid: the number of programs is the product.
        buffers: what it writes besides tensors of the call; made before it runs.
        reads: the tensors of the call that its result depends on, if it depends on nothing else but sizes and
            parameters, and may therefore be kept; ``None`` otherwise.
        warps: of a program.
        stages: of its software pipeline.
        registers: of a thread at most, or when it starts, where the kernel moves them between warps; 0: as many as it
            needs.
        resident: whether one program for each multiprocessor is enough: they take what is to be done from a counter.
        grouped: the tensors with a head for each key head that it writes sums over the query heads of a group to. It
            is given the size ``heads`` to say how many, see :func:`parts_of_groups`.
        apart: whether each query head is a part of its own.
        turned: whether it runs for some heads at a time, in turns with those beside it that are ``turned`` too.
    """

    name: str
    family: str
    arguments: dict[str, Arguments]
    constants: dict[str, Constant]
    slots: dict[str, str]
    grid: tuple[Extent, ...]
    buffers: tuple[Buffer, ...] = ()
    reads: tuple[str, ...] | None = None
    warps: int = 4
    stages: int = 1
    registers: int = 0
    resident: bool = False
    grouped: tuple[str, ...] = ()
    apart: bool = False
    turned: bool = False


HEADS = "heads"
"""The size that says how many heads a launch with ``grouped`` tensors writes."""


def parts_of_groups(programs: int, heads: int, groups: int, processors: int) -> int:
    """In how many parts a launch sums the query heads of each group: one where that keeps a device busy.

    ``programs`` is how many it has for one key head. Parts are added up afterwards.
    """
    each = heads // groups
    enough = (
        parts for parts in range(1, each + 1) if each % parts == 0 and programs * groups * parts >= 3 * processors
    )
    return next(enough, each)


@dataclass(frozen=True, slots=True)
class Split:
    """When keys are split: tiles of ``rows`` rows, of all heads of a group if ``packed``, and of ``keys`` keys."""

    rows: int
    keys: int
    packed: bool

    def parts(self, sizes: Mapping[str, int], processors: int) -> int:
        """Parts of the keys in a call of sizes ``B H G M N``; 0 where one walk over all keys is better.

        Keys are split where tiles of rows leave half of the device idle, into parts of two tiles at least; and packed
        rows that are one tile take this way in any case, so that a key is loaded once for all heads of a group.
        """
        if 0 in sizes.values():
            return 0
        tiles, heads, packed = self._tiles(sizes)
        programs = tiles * heads * sizes["B"]
        if 2 * programs <= processors:
            parts = min(2 * processors // programs, -(-sizes["N"] // (2 * self.keys)))
            if parts > 1:
                return parts
        return int(packed > 1 and tiles == 1)

    def sizes(self, sizes: Mapping[str, int], processors: int) -> dict[str, int]:
        """Sizes that the launches use: the parts of the keys, tiles of rows of a head, rows of all heads."""
        rows = sizes["B"] * sizes["H"] * sizes["M"]
        return {
            "split.parts": max(1, self.parts(sizes, processors)),
            "split.tiles": self._tiles(sizes)[0],
            "split.rows": rows,
        }

    def _tiles(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        """Tiles of rows of a head or group of heads, how many of these there are, and heads that a tile packs."""
        heads, packed = (sizes["G"], sizes["H"] // sizes["G"]) if self.packed else (sizes["H"], 1)
        return -(-sizes["M"] * packed // self.rows), heads, packed


@dataclass(frozen=True, slots=True)
class Regroup:
    """How queries are sorted by the blocks in their lists: ``most`` of ``block`` keys each.

    ``tile`` entries are one task; ``keys`` are held by a program that walks over rows; ``chunk`` rows are counted
    together. Partial results take ``width`` bytes an entry.
    """

    block: int
    most: int
    tile: int
    keys: int
    chunk: int
    width: int

    def sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Sizes that the launches use in a call of sizes ``B H M N``; those of tasks are bounds."""
        blocks, entries = -(-sizes["N"] // self.block), sizes["M"] * self.most
        return {
            "regroup.blocks": blocks,
            "regroup.ends": blocks + 1,
            "regroup.chunks": -(-sizes["M"] // self.chunk),
            "regroup.entries": entries,
            "regroup.tasks": entries // self.tile + blocks,
            "regroup.key_tiles": blocks * -(-self.block // self.keys) if self.keys else 0,
        }

    def turns(self, sizes: Mapping[str, int], most: int) -> Iterator[dict[str, int]]:
        """Stretches of heads of batch rows whose partial results take at most ``most`` bytes, or one head each."""
        lines = sizes["B"] * sizes["H"]
        at_once = max(1, min(lines, most // max(1, self.width * sizes["regroup.entries"])))
        at_once = -(-lines // -(-lines // at_once))
        for first in range(0, lines, at_once):
            count = min(at_once, lines - first)
            yield {"regroup.first": first, "regroup.lines": count, "regroup.rows": count * sizes["M"]}


@dataclass(frozen=True, slots=True)
class Layout:
    """What the kernels take for granted of a tensor of the call: its last axis is contiguous, and

    ``align`` divides the address and the other strides in bytes; ``boxed`` are those that descriptors are made of,
    which have no stride 0. A tensor that is otherwise is copied first.
    """

    align: int
    boxed: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """All kernels of a plan in the order they run.

    ``inputs``, ``parameters`` and ``extents`` name what a call passes, in order; ``layouts`` is by tensor. ``saved``
    are the states that a forward writes; ``reads`` what a backward is given besides, and ``results`` what it writes,
    with the types its kernels write. ``split`` says when the keys of a forward are split,
    ``regroup`` how queries are sorted where their masks are lists; ``block`` are the keys of a block where blocks are
    chosen, 0 elsewhere. ``listed`` names the lists of keys that rows see, if there are some.
    """

    launches: tuple[Launch, ...]
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    extents: tuple[str, ...]
    layouts: dict[str, Layout] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    results: tuple[tuple[str, str], ...] = ()
    split: Split | None = None
    regroup: Regroup | None = None
    block: int = 0
    listed: str = ""


def leaves(arguments: Arguments) -> Iterator[tuple[tuple[int, ...], Value | Box]]:
    """Every value and descriptor with its path, in the order in which Triton flattens tuples."""
    if not isinstance(arguments, tuple):
        yield (), arguments
        return
    for at, inner in enumerate(arguments):
        for path, value in leaves(inner):
            yield (at, *path), value


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that running it needs."""
    return {
        "inputs": list(recipe.inputs),
        "parameters": list(recipe.parameters),
        "extents": list(recipe.extents),
        "layouts": {name: [layout.align, layout.boxed] for name, layout in recipe.layouts.items()},
        "saved": list(recipe.saved),
        "reads": list(recipe.reads),
        "results": [list(one) for one in recipe.results],
        "listed": recipe.listed,
        "split": recipe.split and [recipe.split.rows, recipe.split.keys, recipe.split.packed],
        "regroup": recipe.regroup and list(astuple(recipe.regroup)),
        "block": recipe.block,
        "launches": [_launch_to_json(launch) for launch in recipe.launches],
    }


def _launch_to_json(launch: Launch) -> dict[str, Any]:
    values = [value for tree in launch.arguments.values() for _, value in leaves(tree)]
    return {
        "name": launch.name,
        "family": launch.family,
        "arguments": [_value_to_json(value) for value in values],
        "grid": [[e.size, e.block] for e in launch.grid],
        "buffers": [[b.name, b.type, [[e.size, e.block] for e in b.extents], b.like, b.zeroed] for b in launch.buffers],
        "reads": None if launch.reads is None else list(launch.reads),
        "warps": launch.warps,
        "resident": launch.resident,
        "grouped": list(launch.grouped),
        "apart": launch.apart,
        "turned": launch.turned,
    }


def _value_to_json(value: Value | Box) -> list[Any]:
    if isinstance(value, Box):
        return ["box", value.type, value.name, value.lo, value.valid, list(value.block)]
    return [value.type, value.kind, value.name, value.dim, value.divisible]


def _value_from_json(fields: list[Any]) -> Value | Box:
    if fields[0] == "box":
        _, kind, name, lo, valid, block = fields
        return Box(kind, name, lo, valid, tuple(block))
    return Value(*fields)


def from_json(data: dict[str, Any]) -> Recipe:
    """What :func:`to_json` wrote, its arguments flattened.

    Raises:
        KeyError, TypeError, ValueError: it did not write this.
    """
    return Recipe(
        tuple(_launch_from_json(launch) for launch in data["launches"]),
        tuple(data["inputs"]),
        tuple(data["parameters"]),
        tuple(data["extents"]),
        {name: Layout(*fields) for name, fields in data["layouts"].items()},
        tuple(data["saved"]),
        tuple(data["reads"]),
        tuple((name, kind) for name, kind in data["results"]),
        None if data["split"] is None else Split(*data["split"]),
        None if data["regroup"] is None else Regroup(*data["regroup"]),
        data["block"],
        data["listed"],
    )


def _launch_from_json(data: dict[str, Any]) -> Launch:
    return Launch(
        name=data["name"],
        family=data["family"],
        arguments={"": tuple(_value_from_json(fields) for fields in data["arguments"])},
        constants={},
        slots={},
        grid=tuple(Extent(*fields) for fields in data["grid"]),
        buffers=tuple(
            Buffer(name, kind, tuple(Extent(*fields) for fields in extents), like, zeroed)
            for name, kind, extents, like, zeroed in data["buffers"]
        ),
        reads=None if data["reads"] is None else tuple(data["reads"]),
        warps=data["warps"],
        resident=data["resident"],
        grouped=tuple(data["grouped"]),
        apart=data["apart"],
        turned=data["turned"],
    )
