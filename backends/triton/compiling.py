"""Ahead-of-time compilation of a recipe by Triton, for a target that need not be here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from attnc.analyse.key_ranking import KeyRanking
from attnc.analyse.mask.cells import cells_of
from attnc.analyse.ranking import Ranking
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.assembler import sound_assembler
from attnc.backends.triton.assembly import Lowered
from attnc.backends.triton.choosing import lower_key_ranking, tile_for
from attnc.backends.triton.configs import (
    FEW_HEADS,
    SHARED_MEMORY,
    Config,
    candidates,
    gather_candidates,
    ranking_candidates,
    regroup_candidates,
    split_candidates,
)
from attnc.backends.triton.families import template
from attnc.backends.triton.lower import lower_plan_to_recipe
from attnc.backends.triton.module import import_source, write_source
from attnc.backends.triton.recipe import ELEMENT_BYTES, Arguments, Box, Launch, Value, leaves
from attnc.backends.triton.regroup import regroupable
from attnc.backends.triton.report import Report, read_report
from attnc.backends.triton.rewrites import widths
from attnc.backends.triton.router import lower_ranking_to_recipe
from attnc.backends.triton.vectors import split
from attnc.plan import Plan

_ATTEMPTS = 5


class CompileError(RuntimeError):
    """No configuration of a kernel fits its target."""


@dataclass(frozen=True, slots=True)
class Binary:
    """One compiled kernel: machine code, how to start it, its assembly and what the compiler says of it."""

    function: str
    code: bytes
    shared: int
    threads: int
    assembly: str
    report: Report


@dataclass(frozen=True, slots=True)
class Compiled:
    """A recipe with the binary of each launch; ``note`` says what was chosen, and why."""

    lowered: Lowered
    source: str
    binaries: tuple[Binary, ...]
    config: Config
    note: str = ""


def compile_plan(plan: Plan, workload: Workload, target: Target, heads: int = FEW_HEADS) -> Compiled:
    """Compile a plan with the first configuration that fits, or with the one that spills least.

    ``heads`` are those of a tile, where keys are given by number.

    Raises:
        CompileError: none fits.
    """
    least: Compiled | None = None
    tiles: set[tuple[int, int, int]] = set()
    listed = regroupable(plan)
    tried: Iterator[Config] = candidates(target, workload.dtype, width_of(plan))
    if plan.program.listed is not None:
        tried = gather_candidates(target, workload.dtype, width_of(plan), heads)
    elif rows := rows_chosen(plan):
        tried = (replace(config, block_m=min(config.block_m, rows)) for config in tried)
    for config in tried if listed is None else regroup_candidates(tried, listed.block, 2, True):
        tile = (config.block_m, config.block_n, config.warps)
        if tile in tiles:
            continue
        if len(tiles) >= _ATTEMPTS and least is not None:
            break
        compiled = compile_with(plan, workload, target, config)
        if any(binary.shared > SHARED_MEMORY[target.arch] for binary in compiled.binaries):
            continue
        if not _spills(compiled):
            return compiled
        tiles.add(tile)  # fewer stages take as many registers
        if least is None or _spills(compiled) < _spills(least):
            least = compiled
    if least is None:
        raise CompileError(f"no tile of `{plan.program.name}` fits the {SHARED_MEMORY[target.arch]} bytes of {target}")
    return least


def compile_few(plan: Plan, workload: Workload, target: Target) -> Compiled | None:
    """Compile a plan for calls with few rows; ``None`` where no configuration fits without spills."""
    for config in split_candidates():
        compiled = compile_with(plan, workload, target, config)
        if _spills(compiled) == 0 and all(one.shared <= SHARED_MEMORY[target.arch] for one in compiled.binaries):
            return compiled
    return None


def rows_chosen(plan: Plan) -> int:
    """How many rows choose their keys together, where that is a tile of fewer than there usually are; else 0."""
    cells = cells_of(plan.mask)
    return cells.rows if cells is not None and cells.rows in (16, 32, 64) else 0


def compile_with(plan: Plan, workload: Workload, target: Target, config: Config) -> Compiled:
    """Compile a plan with one configuration, whether it fits or not."""
    lowered = lower_plan_to_recipe(plan, workload, config, precision(target))
    source = write_source(plan.program.name, lowered.functions, lowered.library, lowered.walked)
    module = import_source(plan.program.name, source)
    binaries = tuple(compile_launch(launch, module, target) for launch in lowered.recipe.launches)
    return Compiled(lowered, source, binaries, config)


def compile_key_ranking(ranking: KeyRanking, workload: Workload, target: Target) -> Compiled:
    """The same for what chooses single keys."""
    tile = tile_for(workload, target, ranking.key.width if ranking.key else 0)
    lowered = lower_key_ranking(ranking, workload, tile, precision(target))
    source = write_source(ranking.program.name, lowered.functions, lowered.library)
    module = import_source(ranking.program.name, source)
    binaries = tuple(compile_launch(launch, module, target) for launch in lowered.recipe.launches)
    return Compiled(lowered, source, binaries, Config(tile.rows, tile.keys, tile.warps, tile.stages))


def compile_ranking(ranking: Ranking, workload: Workload, target: Target) -> Compiled:
    """The same for what chooses.

    Raises:
        CompileError: nothing fits.
    """
    name = ranking.program.name
    least: Compiled | None = None
    for config in ranking_candidates(workload.dtype):
        lowered = lower_ranking_to_recipe(ranking, workload, config, precision(target))
        source = write_source(name, lowered.functions)
        module = import_source(name, source)
        binaries = tuple(compile_launch(launch, module, target) for launch in lowered.recipe.launches)
        made = Compiled(lowered, source, binaries, config)
        if any(binary.shared > SHARED_MEMORY[target.arch] for binary in binaries):
            continue
        if not _spills(made):
            return made
        if least is None or _spills(made) < _spills(least):
            least = made
    if least is None:
        raise CompileError(f"no tile of the choice of `{name}` fits the shared memory of {target}")
    return least


def precision(target: Target) -> str:
    """How products of float32 are taken: three products of tf32 on NVIDIA, exactly on AMD."""
    return "tf32x3" if target.kind == "cuda" else "ieee"


def compile_launch(launch: Launch, module: ModuleType, target: Target) -> Binary:
    """The binary of one launch."""
    import triton

    from attnc.templates.hopper.gluon import source_of

    kernel = template(launch.family)
    slots = {slot: getattr(module, name) for slot, name in launch.slots.items()}
    constants = {**launch.constants, **slots}
    places = {name: at for at, name in enumerate(kernel.arg_names)}
    signature = {
        name: _types(launch.arguments[name]) if name in launch.arguments else "constexpr" for name in kernel.arg_names
    }
    hints = {
        (places[name], *path): [["tt.divisibility", value.divisible]]
        for name, tree in launch.arguments.items()
        for path, value in leaves(tree)
        if isinstance(value, Value) and value.divisible > 1
    }
    source = source_of(kernel, signature, {(places[name],): value for name, value in constants.items()}, hints)
    options = {"num_warps": launch.warps, "num_stages": max(1, launch.stages)}
    options |= {"maxnreg": launch.registers} if launch.registers else {}
    with sound_assembler(_capability(target)) if target.kind == "cuda" else nullcontext():
        made = triton.compile(source, target=_gpu(target), options=options)
    metadata = made.metadata
    boxes = [value for tree in launch.arguments.values() for _, value in leaves(tree) if isinstance(value, Box)]
    for box, meta in zip(boxes, getattr(metadata, "tensordesc_meta", None) or (), strict=True):
        if (tuple(meta["block_size"]), 16 << meta["swizzle"]) != (box.moved, box.swizzle or 16):
            raise CompileError(f"{launch.name}: Triton lays {box} out as {meta}")
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(metadata, scratch, 0):
            raise CompileError(f"the kernel {launch.name} wants {scratch}, which this backend does not pass")
    code, assembly = ("cubin", "ptx") if target.kind == "cuda" else ("hsaco", "amdgcn")
    return Binary(
        metadata.name,
        made.asm[code],
        metadata.shared,
        metadata.num_warps * metadata.warp_size,
        made.asm[assembly],
        read_report(made.asm[code], made.asm[assembly], metadata.shared, target),
    )


def _types(arguments: Arguments) -> Any:
    if isinstance(arguments, Box):
        from attnc.templates.hopper.gluon import descriptor_type

        bits = 8 * ELEMENT_BYTES[arguments.type]
        return descriptor_type(arguments.type, arguments.block, arguments.swizzle, bits)
    return arguments.type if isinstance(arguments, Value) else tuple(map(_types, arguments))


def _gpu(target: Target) -> Any:
    from triton.backends.compiler import GPUTarget

    if target.kind == "hip":
        return GPUTarget("hip", target.arch, 64)
    return GPUTarget("cuda", _capability(target), 32)


def _capability(target: Target) -> int:
    return int(target.arch.removeprefix("sm_"))


def width_of(plan: Plan) -> int:
    """What a row of the widest tile holds: lanes of keys, or of all accumulators together."""
    assert plan.program.widths is not None
    d, e = (sum(padded for _, _, padded in split(width)) for width in widths(plan.program))
    return max(d, e, *(e * len(step.accumulators) for step in plan.passes), 16)


def _spills(compiled: Compiled) -> int:
    return sum(binary.report.spilled for binary in compiled.binaries)
