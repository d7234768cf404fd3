"""Ahead-of-time compilation of a backward: each traversal gets a tile shape of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from attnc.analyse.gradient.backward import Backward
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.adjoint import prepare
from attnc.backends.triton.assembly import Lowered
from attnc.backends.triton.compiling import Binary, CompileError, compile_launch, precision
from attnc.backends.triton.configs import (
    FEW_HEADS,
    SCATTER,
    SHARED_MEMORY,
    Config,
    GatherConfig,
    backward_candidates,
    gather_candidates,
    regroup_candidates,
)
from attnc.backends.triton.hopper.backward_configs import (
    FAMILY,
    WalkConfig,
    fault_of,
    fused_candidates,
    fused_refusal,
    refusal,
    walk_candidates,
)
from attnc.backends.triton.hopper.backward_terms import cotangents
from attnc.backends.triton.lower_backward import lanes_of, lower_backward_to_recipe
from attnc.backends.triton.module import import_source, write_source
from attnc.backends.triton.recipe import Launch
from attnc.backends.triton.regroup import regroupable
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
    refusals: Mapping[str, str]
    """Why traversals have no kernel of the Hopper family, and why they are not ``fused``."""

    @property
    def note(self) -> str:
        """What was chosen, and why."""
        rows = self.configs["rows"]
        lines = [f"not those for Hopper ({what}): {reason}" for what, reason in self.refusals.items()]
        if isinstance(rows, WalkConfig) and rows.fused:
            lines.append("over the rows and the keys at once: kernels with TMA and warp specialisation")
            return "\n".join(lines)
        for over in OVERS:
            special = isinstance(self.configs[over], WalkConfig)
            kind = "kernels with TMA and warp specialisation" if special else "portable kernels"
            lines.append(f"over the {over}: {kind}")
        return "\n".join(lines)


def compile_backward(
    backward: Backward, workload: Workload, target: Target, heads: int = FEW_HEADS
) -> CompiledBackward:
    """Compile a backward, each traversal with the first tile shape that fits, or with the one that spills least.

    Raises:
        CompileError: none fits.
    """
    width = backward_width(backward)
    tried: dict[Over, list[Config]] = {
        over: list(backward_candidates(target, workload.dtype, width, over)) for over in OVERS
    }
    listed, gathers = regroupable(backward), backward.plan.program.listed is not None
    if gathers:
        tried = {over: list(gather_candidates(target, workload.dtype, width, heads)) for over in OVERS}
    if listed is not None:
        tried = {
            "keys": list(regroup_candidates(iter(tried["keys"]), listed.block, 1, True)),
            "rows": list(regroup_candidates(iter(tried["rows"]), listed.block, 2, False)),
        }
    configs: Configs = {over: tried[over][0] for over in OVERS} | {"pairs": SCATTER}
    refusals: dict[str, str] = {}
    if listed is not None or gathers:
        for over in OVERS:
            configs[over] = _choose(backward, workload, target, configs, over, tried[over])
        return compile_with(backward, workload, target, configs)
    if workload.unordered:
        try:
            configs["rows"] = _choose_fused(backward, workload, target, configs)
            return replace(compile_with(backward, workload, target, configs), refusals=refusals)
        except Refused as refused:
            refusals["fused"] = str(refused)
    for over in OVERS:
        try:
            configs[over] = _choose_hopper(backward, workload, target, configs, over)
        except Refused as refused:
            refusals[over] = str(refused)
            configs[over] = _choose(backward, workload, target, configs, over, tried[over])
    return replace(compile_with(backward, workload, target, configs), refusals=refusals)


OVERS: tuple[Over, ...] = ("keys", "rows")


def backward_width(backward: Backward) -> int:
    """Lanes of the wider of queries and values."""
    return max(sum(padded for _, _, padded in split(width)) for width in widths(backward.plan.program))


class Refused(Exception):
    """A family does not take a walk, and why."""


def compile_with(backward: Backward, workload: Workload, target: Target, configs: Configs) -> CompiledBackward:
    """Compile a backward with given configurations, whether they fit or not."""
    lowered = lower_backward_to_recipe(backward, workload, configs, precision(target))
    source = write_source(backward.plan.program.name, lowered.functions, lowered.library)
    module = import_source(backward.plan.program.name, source)
    binaries = tuple(compile_launch(launch, module, target) for launch in lowered.recipe.launches)
    return CompiledBackward(lowered, source, binaries, configs, {})


def _choose_hopper(backward: Backward, workload: Workload, target: Target, configs: Configs, over: Over) -> WalkConfig:
    """The first shape of the Hopper family with which the kernels of a traversal fit and hardly spill.

    Raises:
        Refused: there is none.
    """
    prepared = prepare(backward)
    if reason := refusal(over, prepared, workload, target, lanes_of(backward)):
        raise Refused(reason)
    return _first_that_fits(backward, workload, target, configs, over, walk_candidates(over, prepared))


def _choose_fused(backward: Backward, workload: Workload, target: Target, configs: Configs) -> WalkConfig:
    """A shape of a walk over the rows that sums over the keys too; raises as :func:`_choose_hopper`."""
    prepared, lanes = prepare(backward), lanes_of(backward)
    reason = refusal("rows", prepared, workload, target, lanes) or refusal("keys", prepared, workload, target, lanes)
    if reason := reason or fused_refusal(prepared, cotangents(prepared.steps)):
        raise Refused(reason)
    return _first_that_fits(backward, workload, target, configs, "rows", fused_candidates(prepared))


def _first_that_fits(
    backward: Backward, workload: Workload, target: Target, configs: Configs, over: Over, tried: Iterable[WalkConfig]
) -> WalkConfig:
    from triton.errors import TritonError

    said = "its accumulators exceed the registers"
    for config in tried:
        try:
            binaries = _binaries(backward, workload, target, {**configs, over: config}, over)
        except TritonError as error:
            raise Refused(f"Triton does not compile it: {str(error).splitlines()[-1]}") from error
        faults = [fault for one in binaries if (fault := fault_of(config, one.report))]
        if not faults:
            return config
        said = f"it {faults[0]}"
    raise Refused(said)


def _binaries(backward: Backward, workload: Workload, target: Target, configs: Configs, over: Over) -> list[Binary]:
    """The kernels of a traversal."""
    name = backward.plan.program.name
    lowered = lower_backward_to_recipe(backward, workload, configs, precision(target))
    module = import_source(name, write_source(name, lowered.functions, lowered.library))
    return [compile_launch(one, module, target) for one in lowered.recipe.launches if _walks(one, over)]


def _choose(
    backward: Backward,
    workload: Workload,
    target: Target,
    configs: Configs,
    over: Over,
    tried: Sequence[Config],
) -> Config:
    """The first configuration of a traversal whose kernels fit and move no registers in a step, else the fewest.

    A program that spreads what one list sums is a single step.
    """
    least: tuple[int, Config] | None = None
    tiles: set[tuple[int, int, int]] = set()
    for config in tried:
        tile = (config.block_m, config.block_n, config.warps)
        if tile in tiles:
            continue
        if len(tiles) >= _ATTEMPTS and least is not None:
            break
        binaries = _binaries(backward, workload, target, {**configs, over: config}, over)
        if any(binary.shared > SHARED_MEMORY[target.arch] for binary in binaries):
            continue
        is_step = isinstance(config, GatherConfig) and over == "rows"
        moved = sum(binary.report.spilled if is_step else binary.report.moved for binary in binaries)
        if not moved:
            return config
        tiles.add(tile)
        if least is None or moved < least[0]:
            least = moved, config
    if least is None:
        raise CompileError(f"no tile of the backward over {over} fits the shared memory of {target}")
    return least[1]


def _walks(launch: Launch, over: Over) -> bool:
    """Whether a launch has the tiles of a traversal."""
    if launch.family in ("gather", "spread"):
        return (launch.family == "spread") == (over == "rows")
    return launch.family in ("stream", "regrouped", "regrouped_rows", FAMILY) and launch.constants["OVER_ROWS"] == (
        over == "rows"
    )
