"""Ahead-of-time compilation of a backward: each traversal gets a tile shape of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from attnc.analyse.gradient.backward import Backward
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.assembly import Lowered
from attnc.backends.triton.compiling import Binary, CompileError, compile_launch, precision
from attnc.backends.triton.configs import SCATTER, SHARED_MEMORY, Config, backward_candidates
from attnc.backends.triton.lower_backward import lower_backward_to_recipe
from attnc.backends.triton.module import import_source, write_source
from attnc.backends.triton.recipe import Launch
from attnc.backends.triton.rewrites import widths
from attnc.backends.triton.slots import Over
from attnc.backends.triton.vectors import split

_ATTEMPTS = 4
Configs: TypeAlias = dict[str, Config]


@dataclass(frozen=True, slots=True)
class CompiledBackward:
    """A recipe with the binary of each launch."""

    lowered: Lowered
    source: str
    binaries: tuple[Binary, ...]
    configs: Configs


def compile_backward(backward: Backward, workload: Workload, target: Target) -> CompiledBackward:
    """Compile a backward, each traversal with the first tile shape that fits, or with the one that spills least.

    Raises:
        CompileError: none fits.
    """
    width = backward_width(backward)
    tried = {over: list(backward_candidates(target, workload.dtype, width, over)) for over in OVERS}
    configs: Configs = {over: tried[over][0] for over in OVERS} | {"pairs": SCATTER}
    for over in OVERS:
        configs[over] = _choose(backward, workload, target, configs, over, tried[over])
    return compile_with(backward, workload, target, configs)


OVERS: tuple[Over, ...] = ("keys", "rows")


def backward_width(backward: Backward) -> int:
    """Lanes of the wider of queries and values."""
    return max(sum(padded for _, _, padded in split(width)) for width in widths(backward.plan.program))


def compile_with(backward: Backward, workload: Workload, target: Target, configs: Configs) -> CompiledBackward:
    """Compile a backward with given configurations, whether they fit or not."""
    lowered = lower_backward_to_recipe(backward, workload, configs, precision(target))
    source = write_source(backward.plan.program.name, lowered.functions)
    module = import_source(backward.plan.program.name, source)
    binaries = tuple(compile_launch(launch, module, target) for launch in lowered.recipe.launches)
    return CompiledBackward(lowered, source, binaries, configs)


def _choose(
    backward: Backward,
    workload: Workload,
    target: Target,
    configs: Configs,
    over: Over,
    tried: list[Config],
) -> Config:
    """The first configuration of a traversal with which its kernels fit and do not spill, else the least spilling."""
    least: tuple[int, Config] | None = None
    tiles: set[tuple[int, int, int]] = set()
    for config in tried:
        tile = (config.block_m, config.block_n, config.warps)
        if tile in tiles:
            continue
        if len(tiles) >= _ATTEMPTS and least is not None:
            break
        lowered = lower_backward_to_recipe(backward, workload, {**configs, over: config}, precision(target))
        module = import_source(
            backward.plan.program.name, write_source(backward.plan.program.name, lowered.functions)
        )  # fmt: skip
        binaries = [compile_launch(one, module, target) for one in lowered.recipe.launches if _walks(one, over)]
        if any(binary.shared > SHARED_MEMORY[target.arch] for binary in binaries):
            continue
        spilled = sum(binary.report.spilled for binary in binaries)
        if not spilled:
            return config
        tiles.add(tile)
        if least is None or spilled < least[0]:
            least = spilled, config
    if least is None:
        raise CompileError(f"no tile of the backward over {over} fits the shared memory of {target}")
    return least[1]


def _walks(launch: Launch, over: Over) -> bool:
    """Whether a launch has the tiles of a traversal."""
    return launch.family == "stream" and launch.constants["OVER_ROWS"] == (over == "rows")
