"""What the tuner may choose of a Triton kernel, and which of it can be ruled out without running anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from attnc.analyse.gradient.backward import Backward, Walk
from attnc.analyse.mask import analyse_mask
from attnc.backends.protocol import BackwardKernel, Choice, Kernel, Space, Target, Workload
from attnc.backends.protocol import Config as Settings
from attnc.backends.triton.adjoint import prepare
from attnc.backends.triton.choice import hopper_configs, lanes_of, why_not_hopper
from attnc.backends.triton.compiling import width_of
from attnc.backends.triton.compiling_backward import OVERS, Configs, backward_width
from attnc.backends.triton.configs import (
    SCATTER,
    SHARED_MEMORY,
    Config,
    SplitConfig,
    backward_candidates,
    candidates,
    split_candidates,
)
from attnc.backends.triton.few import FewRows, can_split, has_few_rows
from attnc.backends.triton.hopper.backward_configs import (
    OUTER_BLOCK,
    WalkConfig,
    fused_candidates,
    fused_refusal,
    refusal,
    unsound,
    walk_candidates,
)
from attnc.backends.triton.hopper.backward_terms import cotangents
from attnc.backends.triton.hopper.configs import HopperConfig
from attnc.backends.triton.kernel import DeviceBackward, DeviceKernel
from attnc.backends.triton.lower_backward import lanes_of as lanes_of_backward
from attnc.backends.triton.regroup import regroupable
from attnc.backends.triton.report import fault_in
from attnc.backends.triton.slots import Over
from attnc.plan import Plan

TILES = (16, 32, 64, 128, 256)
HOPPER_TILES = (16, 32, 64, 128, 192, 256)
WARPS = (2, 4, 8)
STAGES = (1, 2, 3, 4)
FLAGS = ("eager", "hide", "apart")
REGISTERS = 255
"""Most 32-bit registers of a thread."""
BYTES = {"bf16": 2, "f16": 2, "f32": 4}


def space_of(subject: Plan | Backward, workload: Workload, target: Target, sizes: Mapping[str, int]) -> Space:
    """The tile, warps and stages of a forward; of a backward, those of its walks over keys and over rows.

    Where there are several families the family too, and how many tiles of queries a kernel for Hopper holds. Nothing
    where queries are sorted by lists.
    """
    if regroupable(subject) is not None:
        return Space()
    limit = SHARED_MEMORY[target.arch]
    if isinstance(subject, Plan):
        width = width_of(subject)
        start = next(candidates(target, workload.dtype, width))

        def too_large(settings: Settings) -> str | None:
            return _excluded(tile_of(settings), "keys", width, workload, limit, sums=1)

        families = ["stream"]
        default: dict[str, int | str] = {"family": "stream", **asdict(start), "queries": 1}
        special = why_not_hopper(subject, workload, target) is None
        if special:
            families.insert(0, "hopper")
            default = {"family": "hopper", **asdict(next(hopper_configs(subject)))}
        if has_few_rows(sizes) and can_split(subject, workload):
            families.append("split")
            default = {"family": "split", **asdict(next(split_candidates())), "queries": 1}
        choices = (*_families(families), *_choices("", HOPPER_TILES if special else TILES))
        choices += (Choice("queries", (1, 2)),) if special else ()
        names = {choice.name for choice in choices}
        return Space(
            choices,
            {name: setting for name, setting in default.items() if name in names},
            (lambda settings: _excluded_of_families(settings, subject, too_large)) if special else too_large,
            _settled_forward,
        )
    return _space_of_backward(subject, workload, target)


def _space_of_backward(backward: Backward, workload: Workload, target: Target) -> Space:
    """Of each traversal; where both have kernels for Hopper, which family, and how the walk is built."""
    limit, width, prepared = SHARED_MEMORY[target.arch], backward_width(backward), prepare(backward)
    walked = [over for over in OVERS if any(isinstance(step, Walk) and step.over == over for step in prepared.steps)]

    def too_large(settings: Settings, over: Over) -> str | None:
        tile = tile_of(settings, f"{over}_")
        if isinstance(tile, WalkConfig):
            return unsound(tile, over, prepared)
        return _excluded(tile, over, width, workload, limit, sums=2 if over == "rows" else 1)

    lanes = lanes_of_backward(backward)
    special = all(not refusal(over, prepared, workload, target, lanes) for over in walked)
    fusable = special and workload.unordered and not fused_refusal(prepared, cotangents(prepared.steps))
    default: dict[str, int | str] = {}
    choices: list[Choice] = []
    for over in walked:
        tried = fused_candidates(prepared) if fusable and over == "rows" else walk_candidates(over, prepared)
        start = next(tried, None) if special else None
        portable = next(backward_candidates(target, workload.dtype, width, over))
        default |= {f"{over}_{x}": getattr(start or portable, x) for x in ("block_m", "block_n", "warps", "stages")}
        choices += _choices(f"{over}_")
        if start is not None:
            choices.append(Choice(f"{over}_family", ("hopper", "stream")))
            choices += [Choice(f"{over}_{flag}", (0, 1)) for flag in FLAGS]
            default |= {f"{over}_family": "hopper"} | {f"{over}_{flag}": int(getattr(start, flag)) for flag in FLAGS}
    if fusable:
        choices.append(Choice("fused", (0, 1)))
        default["fused"] = 1

    def settled(settings: Settings) -> Settings:
        found = dict(settings)
        for over in walked:
            outer = "block_m" if over == "keys" else "block_n"
            match settings.get(f"{over}_family"):
                case "stream":
                    found |= {f"{over}_{flag}": 0 for flag in FLAGS}
                case "hopper":
                    found |= {f"{over}_{outer}": OUTER_BLOCK, f"{over}_warps": 4}
        if settings.get("fused"):
            if settings["rows_family"] == "hopper":  # one shape, and no walk over the keys
                decided = [name for name in default if name.startswith("keys_")] + ["rows_block_m", "rows_apart"]
                found |= {name: default[name] for name in decided}
            else:  # which only kernels for Hopper do without
                found["fused"] = 0
        return found

    def excluded(settings: Settings) -> str | None:
        found = ((over, too_large(settings, over)) for over in walked)
        return next((f"over {over}: {problem}" for over, problem in found if problem), None)

    return Space(tuple(choices), default, excluded, settled)


def _settled_forward(settings: Settings) -> Settings:
    """Portable kernels hold one tile of queries; groups of kernels for Hopper have four warps."""
    fixed = {"warps": 4} if settings.get("family") == "hopper" else {"queries": 1}
    return {**settings, **{name: setting for name, setting in fixed.items() if name in settings}}


def _families(names: list[str]) -> tuple[Choice, ...]:
    return (Choice("family", tuple(names)),) if len(names) > 1 else ()


def _choices(prefix: str, rows: tuple[int, ...] = TILES) -> Iterator[Choice]:
    for name, settings in (("block_m", rows), ("block_n", TILES), ("warps", WARPS), ("stages", STAGES)):
        yield Choice(prefix + name, settings)


def _excluded_of_families(settings: Settings, plan: Plan, too_large: Callable[[Settings], str | None]) -> str | None:
    """The same where there are two families."""
    if settings["family"] != "hopper":
        if settings["queries"] != 1 or settings["block_m"] not in TILES:
            return "portable kernels hold one tile of queries, of a power of two rows"
        return too_large(settings)
    config = tile_of(settings)
    assert isinstance(config, HopperConfig), "the other family"
    if config.warps != 4 or config.block_m not in (128, 192) or config.block_n < 32 or config.stages < 2:
        return "kernels for Hopper have groups of 4 warps, 2 or 3 of them, tiles of 32 keys or more, 2 stages or more"
    if config.block_m == 192 and not analyse_mask(plan.mask).by_ranges:
        return "lists of tiles are made for a power of two rows"
    keys, values, _ = lanes_of(plan)
    if (shared := config.shared(keys, values)) > SHARED_MEMORY["sm_90"]:
        return f"it takes {shared} bytes of shared memory, there are {SHARED_MEMORY['sm_90']}"
    return None


def _excluded(tile: Config, over: str, width: int, workload: Workload, limit: int, *, sums: int) -> str | None:
    """Why a tile cannot fit: operands of all stages in shared memory, scores and ``sums`` in registers."""
    outer, inner = (tile.block_m, tile.block_n) if over == "keys" else (tile.block_n, tile.block_m)
    shared = BYTES[workload.dtype] * width * (outer + 2 * inner * max(1, tile.stages - 1))
    if shared > limit:
        return f"its operands take {shared} bytes of shared memory, there are {limit}"
    registers = (outer * inner + sums * outer * width) // (32 * tile.warps)
    if registers > REGISTERS:
        return f"its accumulators take {registers} registers of a thread, there are {REGISTERS}"
    return None


def tile_of(settings: Settings, prefix: str = "") -> Config:
    """One tile as the settings whose names begin with ``prefix`` say."""
    block_m, block_n, warps, stages = (int(settings[prefix + x]) for x in ("block_m", "block_n", "warps", "stages"))
    if settings.get("family") == "hopper":
        return HopperConfig(block_m, block_n, warps, stages, int(settings["queries"]))
    if settings.get("family") == "split":
        return SplitConfig(block_m, block_n, warps, stages)
    if prefix and settings.get(f"{prefix}family") == "hopper":
        flags = {flag: bool(settings[prefix + flag]) for flag in FLAGS}
        fused = prefix == "rows_" and bool(settings.get("fused", 0))
        return WalkConfig(block_m, block_n, warps, stages, **flags, fused=fused)
    return Config(block_m, block_n, warps, stages)


def tiles_of(settings: Settings) -> Configs:
    """The tiles of the walks of a backward; a walk that it does not have may have any."""
    walked = [over for over in OVERS if f"{over}_block_m" in settings]
    return {**dict.fromkeys((*OVERS, "pairs"), SCATTER), **{over: tile_of(settings, f"{over}_") for over in walked}}


def rejection(kernel: Kernel | BackwardKernel, target: Target) -> str | None:
    """Why the compiler's report of a kernel says that it will not do."""
    for one in (kernel.many, kernel.few) if isinstance(kernel, FewRows) else (kernel,):
        assert isinstance(one, DeviceKernel | DeviceBackward), "only what was compiled has reports"
        for launch in one.recipe.launches:
            if fault := fault_in(one.report()[launch.name], launch.family, SHARED_MEMORY[target.arch]):
                return f"{launch.name} {fault}"
    return None
