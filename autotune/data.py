"""Tensors for a problem: random ones of its sizes, outputs that are poisoned, and guards around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnc.autotune.problem import Problem
from attnc.errors import ArgumentError
from attnc.ir.nodes import Input, Kind, Size
from attnc.ir.program import Program
from attnc.signature import size_value

TORCH = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f64": torch.float64,
    "i32": torch.int32,
    "i64": torch.int64,
    "bool": torch.bool,
}
DOCUMENTS = 12
"""Different numbers in an input of integers; they ascend, as numbers of documents and segments do."""
PAD = 4096
"""Elements before and after an output that must stay as they are."""


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call."""

    sizes: Mapping[str, int]
    q: Tensor
    k: Tensor
    v: Tensor
    inputs: list[Tensor]
    parameters: list[float]
    extents: list[int]


def make_call(problem: Problem, sizes: Mapping[str, int], seed: int) -> Call:
    """Random arguments; ``sizes`` has ``B H G M N`` and the extents of the program."""
    device = torch.device("cpu" if problem.target.kind == "cpu" else "cuda")
    generator = torch.Generator(device).manual_seed(seed)
    d, e = problem.widths
    sizes = {**sizes, "D": d, "E": e}
    dtype = TORCH[problem.workload.dtype]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    program = problem.program
    declared = zip(program.inputs, problem.workload.inputs, strict=True)
    return Call(
        sizes,
        normal(sizes["B"], sizes["H"], sizes["M"], d),
        normal(sizes["B"], sizes["G"], sizes["N"], d),
        normal(sizes["B"], sizes["G"], sizes["N"], e),
        [_input(source, TORCH[dtype], sizes, generator) for source, dtype in declared],
        [1.0 if x.default is None else x.default for x in program.parameters],
        [sizes[name] for name in program.extents],
    )


def _input(source: Input, dtype: torch.dtype, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    shape = [size_value(dim, sizes) for dim in source.dims]
    device = generator.device
    match source.kind:
        case Kind.REAL:
            return torch.rand(shape, generator=generator, device=device).to(dtype)
        case Kind.BOOL:
            return torch.rand(shape, generator=generator, device=device) < 0.9
        case _:
            most = min([DOCUMENTS, *(sizes[name] for name in ("B", "H", "G", "M", "N"))])
            drawn = torch.randint(max(1, most), shape, generator=generator, device=device)
            return (drawn.sort(dim=-1).values if shape else drawn).to(dtype)


def awkward_sizes(problem: Problem) -> list[dict[str, int]]:
    """Sizes that divide nothing; with a space, a small one."""
    ratio = max(1, problem.sizes["H"] // max(1, problem.sizes["G"]))
    heads = {"B": 2, "H": 2 * ratio, "G": 2}
    program = problem.program
    if program.space:
        extents = {name: 5 + at for at, name in enumerate(program.extents)}
        n = math.prod(size_value(extent, extents) for _, extent in program.space)
        return [{**heads, "M": n, "N": n, **extents}]
    return [{**heads, "M": 77, "N": 203}, {**heads, "M": 1, "N": 131}]


DEFAULTS = {"B": 1, "H": 8, "N": 1024, "D": 64}


def complete_sizes(given: Mapping[str, int], program: Program) -> tuple[dict[str, int], tuple[int, int]]:
    """Sizes and head widths of a call: G is H, M is N and E is D where they are not given, an extent follows from N.

    Raises:
        ArgumentError: a name is none of a size, or a size is not positive.
    """
    known = ("B", "H", "G", "M", "N", "D", "E", *program.extents)
    for name, size in given.items():
        if name not in known or size < 1:
            raise ArgumentError("shapes", f"`{name}={size}`: write NAME=NUMBER with a name out of {' '.join(known)}")
    found = {**DEFAULTS, **given}
    found = {"G": found["H"], "M": found["N"], "E": found["D"], **found}
    widths = found.pop("D"), found.pop("E")
    return resolve_extents(program, found), widths


def resolve_extents(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """``sizes`` with the one extent that was left out, as it follows from N."""
    missing = [name for name in program.extents if name not in sizes]
    if len(missing) != 1:
        return dict(sizes)
    others = [extent for _, extent in program.space if not (isinstance(extent, Size) and extent.name == missing[0])]
    product = math.prod(size_value(extent, sizes) for extent in others)
    return {**sizes, missing[0]: sizes["N"] // max(1, product)}


@dataclass(slots=True)
class Guarded:
    """Poisoned tensors, each in the middle of memory that nothing may write to."""

    _whole: list[tuple[Tensor, int]] = field(default_factory=list)

    def like(self, x: Tensor) -> Tensor:
        """A tensor of NaN with the shape, strides and type of ``x``."""
        length = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        whole = torch.full((length + 2 * PAD,), math.nan, dtype=x.dtype, device=x.device)
        self._whole.append((whole, length))
        return whole.as_strided(x.shape, x.stride(), PAD)

    def intact(self) -> bool:
        """Whether nothing around the tensors was written."""
        return all(_untouched((whole[:PAD], whole[PAD + length :])) for whole, length in self._whole)


def _untouched(parts: Sequence[Tensor]) -> bool:
    return all(bool(part.isnan().all()) for part in parts)
