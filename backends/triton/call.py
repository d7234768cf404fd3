"""One call of the kernels of a recipe: tensors and sizes bound to the names that arguments go by."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from attnc.backends.triton.recipe import HEADS, Box, Buffer, Extent, Launch, Layout, Recipe, Value, parts_of_groups

Number: TypeAlias = "int | float"
Execute: TypeAlias = "Callable[[int, int, Callable[[Value | Box], Tensor | Number]], None]"
"""Runs the launch at a place of the recipe with so many programs; the last argument binds its values."""

TORCH_TYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64,
    "i32": torch.int32, "i64": torch.int64, "i1": torch.bool,
}  # fmt: skip
_INTERPRETED = 12
_LARGEST_STRIDE = 2**31 // 256
_LARGEST_SIZE = 2**31 - 2**16
TURN = 1 << 31
"""Bytes of partial results that are made before they are merged."""


class SizeError(ValueError):
    """A size beyond what the kernels count with."""


@dataclass(slots=True)
class TileLists:
    """Tile lists of recent calls. Each is kept while the memory that it was made from lives unchanged.

    An operator is not given the tensors of its caller but others of the same memory, whose count of changes is one.
    """

    most: int = 8
    kept: OrderedDict[tuple[object, ...], tuple[list[weakref.ref[torch.UntypedStorage]], dict[str, Tensor]]] = field(
        default_factory=OrderedDict
    )

    def find(self, key: tuple[object, ...], tensors: Sequence[Tensor]) -> dict[str, Tensor] | None:
        found = self.kept.get(key)
        if found is None:
            return None
        references, buffers = found
        if any(made() is not tensor.untyped_storage() for made, tensor in zip(references, tensors, strict=True)):
            del self.kept[key]
            return None
        self.kept.move_to_end(key)
        return buffers

    def keep(self, key: tuple[object, ...], tensors: Sequence[Tensor], buffers: dict[str, Tensor]) -> None:
        self.kept[key] = ([weakref.ref(tensor.untyped_storage()) for tensor in tensors], buffers)
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)


@dataclass(slots=True)
class Call:
    """The names of one call."""

    tensors: dict[str, Tensor]
    sizes: dict[str, int]
    parameters: dict[str, Number]

    def bind(self, value: Value | Box) -> Tensor | Number:
        if isinstance(value, Box):
            return self.tensors[value.name]
        match value.kind:
            case "tensor":
                return self.tensors[value.name]
            case "stride":
                return self.tensors[value.name].stride(value.dim)
            case "extent":
                return self.tensors[value.name].shape[value.dim]
            case "size":
                return self.sizes[value.name]
            case "parameter":
                return self.parameters[value.name]

    def extent(self, extent: Extent) -> int:
        size = extent.size if isinstance(extent.size, int) else self.sizes[extent.size]
        return -(-size // extent.block)


def run(
    recipe: Recipe,
    execute: Execute,
    lists: TileLists,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[float],
    extents: Sequence[int],
    out: Tensor,
    lse: Tensor | None,
    saved: Sequence[Tensor],
) -> None:
    """Run every kernel of a recipe in order, on the current stream.

    Tensors whose layout the kernels do not take are copied first: q, k and v O(tokens x width), inputs whose last
    axis is not contiguous. What is written goes through a copy then.

    Raises:
        SizeError: a size does not fit the kernels' counters.
    """
    sizes = _sizes(recipe, q, k, inputs, extents)
    if out.numel() == 0:
        return
    if 0 in (sizes["N"], sizes["L"]):
        out.zero_()
        if lse is not None:
            lse.fill_(-math.inf)
        for tensor in saved:
            tensor.zero_()
        return
    if recipe.split is not None:
        sizes |= recipe.split.sizes(sizes, processors_of(q.device))
    if recipe.regroup is not None:
        sizes |= recipe.regroup.sizes(sizes)
    call, given = _call(recipe, q, k, v, inputs, parameters, sizes)
    call.tensors["out"] = _laid_out(out, recipe.layouts["out"], copy=False)
    written = dict(zip(recipe.saved, saved, strict=True)) | ({} if lse is None else {"lse": lse})
    for name, tensor in written.items():
        call.tensors[name] = _plain(tensor, tensor.dtype)
    _launch_all(recipe, call, given, execute, lists)
    _deliver(call, {"out": out} | written)


def processors_of(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few for the interpreter, so that small calls do there what large ones do here."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _INTERPRETED


def run_backward(
    recipe: Recipe,
    execute: Execute,
    lists: TileLists,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[float],
    extents: Sequence[int],
    reads: Sequence[Tensor],
    results: Sequence[Tensor],
) -> None:
    """The same for the recipe of a backward. Results of another dtype or layout than kernels write are copied."""
    sizes = _sizes(recipe, q, k, inputs, extents)
    if 0 in (sizes[size] for size in "BHMNL"):
        for tensor in results:
            tensor.zero_()
        return
    if recipe.regroup is not None:
        sizes |= recipe.regroup.sizes(sizes)
    call, given = _call(recipe, q, k, v, inputs, parameters, sizes)
    for name, tensor in zip(recipe.reads, reads, strict=True):
        layout = recipe.layouts.get(name)
        call.tensors[name] = _laid_out(tensor, layout) if layout else _last_contiguous(tensor)
    written = {name: tensor for (name, _), tensor in zip(recipe.results, results, strict=True)}
    for name, kind in recipe.results:
        tensor, layout = written[name], recipe.layouts.get(name)
        if layout is not None and tensor.dim() == 4 and tensor.dtype == TORCH_TYPES[kind]:
            call.tensors[name] = _laid_out(tensor, layout, copy=False)
        else:
            call.tensors[name] = _plain(tensor, TORCH_TYPES[kind])
    _launch_all(recipe, call, given, execute, lists)
    _deliver(call, written)


def run_router(
    recipe: Recipe,
    execute: Execute,
    q: Tensor,
    k: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[float],
    extents: Sequence[int],
    numbers: Tensor,
    counts: Tensor,
) -> None:
    """The same for a recipe that chooses: lists of blocks, ``numbers [B, H, M, most]`` and ``counts [B, H, M]``."""
    sizes = _sizes(recipe, q, k, inputs, extents)
    if 0 in (sizes["B"], sizes["H"], sizes["M"], sizes["N"]):
        numbers.fill_(-1)
        counts.zero_()
        return
    sizes["blocks__"] = -(-sizes["N"] // recipe.block)
    call, given = _call(recipe, q, k, k, inputs, parameters, sizes)
    call.tensors |= {"chosen.numbers": numbers, "chosen.counts": counts}
    _launch_all(recipe, call, given, execute, TileLists())


def _sizes(recipe: Recipe, q: Tensor, k: Tensor, inputs: Sequence[Tensor], extents: Sequence[int]) -> dict[str, int]:
    (batch, heads, rows, _), (key_heads, keys) = q.shape, k.shape[1:3]
    sizes = {"B": batch, "H": heads, "G": key_heads, "M": rows, "N": keys, "L": 1, "group": heads // max(1, key_heads)}
    if recipe.listed:
        sizes["L"] = inputs[recipe.inputs.index(recipe.listed)].shape[-1]
    sizes |= dict(zip(recipe.extents, extents, strict=True))
    for name, size in sizes.items():
        if size > _LARGEST_SIZE:
            raise SizeError(f"{name} = {size} is beyond the {_LARGEST_SIZE} that kernels count to")
    return sizes


def _call(
    recipe: Recipe,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[float],
    sizes: dict[str, int],
) -> tuple[Call, dict[str, Tensor]]:
    """The names of a call, and its inputs as they were given."""
    call = Call({}, sizes, dict(zip(recipe.parameters, parameters, strict=True)))
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        layout = recipe.layouts.get(name)
        call.tensors[name] = _laid_out(tensor, layout) if layout else _last_contiguous(tensor)
    given = dict(zip(recipe.inputs, inputs, strict=True))
    for name, tensor in given.items():
        layout = recipe.layouts.get(name)
        call.tensors[name] = _laid_out(tensor, layout) if layout else _last_contiguous(tensor)
    return call, given


def bound_call(
    recipe: Recipe,
    q: Tensor,
    k: Tensor,
    inputs: Sequence[Tensor],
    parameters: Sequence[float],
    sizes: dict[str, int],
) -> Call:
    """A call whose tensors are laid out, for kernels that neither read v nor write an output.

    Raises:
        SizeError: a size does not fit the kernels' counters.
    """
    for name, size in sizes.items():
        if size > _LARGEST_SIZE:
            raise SizeError(f"{name} = {size} is beyond the {_LARGEST_SIZE} that kernels count to")
    return _call(recipe, q, k, k, inputs, parameters, dict(sizes))[0]


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor``, or one like it to write to: of this dtype, aligned, with the strides of a new tensor."""
    made = torch.empty(tensor.shape, dtype=dtype, device="meta")
    fits = tensor.dtype == dtype and tensor.stride() == made.stride() and tensor.data_ptr() % 16 == 0
    return tensor if fits else torch.empty(tensor.shape, dtype=dtype, device=tensor.device)


def _deliver(call: Call, written: dict[str, Tensor]) -> None:
    """Copy what was written elsewhere to where it is wanted."""
    for name, tensor in written.items():
        if call.tensors[name] is not tensor:
            tensor.copy_(call.tensors[name])


def _launch_all(recipe: Recipe, call: Call, given: dict[str, Tensor], execute: Execute, lists: TileLists) -> None:
    """Every launch in order; those that are turned for some heads at a time, in memory that the turns share."""
    for turned, group in itertools.groupby(enumerate(recipe.launches), key=lambda one: one[1].turned):
        if not turned:
            for at, launch in group:
                _launch(at, launch, call, given, execute, lists)
            continue
        assert recipe.regroup is not None, "turns are those of a regrouping"
        taken = list(group)
        for turn in recipe.regroup.turns(call.sizes, TURN):
            call.sizes |= turn
            for at, launch in taken:
                again = turn["regroup.first"] > 0
                _launch(at, replace(launch, buffers=()) if again else launch, call, given, execute, lists)


def _launch(at: int, launch: Launch, call: Call, given: dict[str, Tensor], execute: Execute, lists: TileLists) -> None:
    key, read = None, []
    if launch.reads is not None and not _capturing(call.tensors["q"]):
        read = [given[name] for name in launch.reads]
        version = _version(read, call)
        key = None if version is None else (at, *version)
    if key is not None and (found := lists.find(key, read)) is not None:
        call.tensors |= found
        return
    device = call.tensors["q"].device
    made = {buffer.name: _made(buffer, call, device) for buffer in launch.buffers}
    call.tensors |= made
    summed = _part_groups(launch, call, device) if launch.grouped else {}
    programs = math.prod(call.extent(extent) for extent in launch.grid)
    if programs > _LARGEST_SIZE:
        raise SizeError(f"{programs} tiles are beyond the {_LARGEST_SIZE} that one launch can have")
    execute(at, programs, call.bind)
    for name, total in summed.items():
        torch.sum(call.tensors[name].unflatten(1, (total.shape[1], -1)), 2, out=total)
        call.tensors[name] = total
    if key is not None:
        lists.keep(key, read, made)


def _part_groups(launch: Launch, call: Call, device: torch.device) -> dict[str, Tensor]:
    """Says how many heads a launch writes, and gives it tensors for parts of sums; answers what those add up to."""
    heads, groups = call.sizes["H"], call.sizes["G"]
    call.sizes[HEADS] = 1
    programs = math.prod(call.extent(extent) for extent in launch.grid)
    parts = heads // groups if launch.apart else parts_of_groups(programs, heads, groups, processors_of(device))
    call.sizes[HEADS] = groups * parts
    if parts == 1:
        return {}
    totals = {name: call.tensors[name] for name in launch.grouped}
    for name, total in totals.items():
        call.tensors[name] = total.new_empty((total.shape[0], groups * parts, *total.shape[2:]))
    return totals


def _made(buffer: Buffer, call: Call, device: torch.device) -> Tensor:
    like = call.tensors[buffer.like].shape if buffer.like else [call.extent(extent) for extent in buffer.extents]
    make = torch.zeros if buffer.zeroed else torch.empty
    return make(like, dtype=TORCH_TYPES[buffer.type], device=device)


def _version(read: Sequence[Tensor], call: Call) -> tuple[object, ...] | None:
    """What tells whether lists made before are still right; ``None`` if nothing does."""
    if any(tensor.is_inference() for tensor in read):
        return None
    device = call.tensors["q"].device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    tensors = tuple((t.data_ptr(), t._version, t.shape, t.stride(), t.dtype) for t in read)
    return (tensors, tuple(call.sizes.items()), tuple(call.parameters.items()), device, stream)


def _capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being recorded: what it reads must be made by the graph itself."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _last_contiguous(tensor: Tensor) -> Tensor:
    if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        return tensor.contiguous()
    return tensor


def _laid_out(tensor: Tensor, layout: Layout, copy: bool = True) -> Tensor:
    """``tensor``, or an aligned contiguous one like it, with its elements if ``copy``."""
    step = max(1, layout.align // tensor.element_size())
    least = 1 if layout.boxed else 0
    strides = tensor.stride()
    fits = (
        (strides[-1] == 1 or tensor.shape[-1] == 1)
        and tensor.data_ptr() % layout.align == 0
        and all(
            (stride % step == 0 and stride >= least) or size == 1
            for stride, size in zip(strides[:-1], tensor.shape, strict=False)
        )
        and 0 <= strides[-2] < _LARGEST_STRIDE
    )
    if fits:
        return tensor
    return (
        tensor.clone(memory_format=torch.contiguous_format)
        if copy
        else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    )
