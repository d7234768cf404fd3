"""What the tuner may choose of a Triton kernel, and which of it can be ruled out without running anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from attnc.analyse.gradient.backward import Backward, Walk
from attnc.analyse.mask import analyse_mask
from attnc.backends.protocol import BackwardKernel, Choice, Kernel, Space, Target, Workload
from attnc.backends.protocol import Config as Settings
from attnc.backends.triton.adjoint import prepare
from attnc.backends.triton.choice import hopper_configs, lanes_of, why_not_hopper
from attnc.backends.triton.compiling import width_of
from attnc.backends.triton.compiling_backward import OVERS, Configs, backward_width
from attnc.backends.triton.configs import SCATTER, SHARED_MEMORY, Config, backward_candidates, candidates
from attnc.backends.triton.hopper.configs import HopperConfig
from attnc.backends.triton.kernel import DeviceBackward, DeviceKernel
from attnc.backends.triton.report import fault_in
from attnc.plan import Plan

TILES = (16, 32, 64, 128, 256)
HOPPER_TILES = (16, 32, 64, 128, 192, 256)
WARPS = (2, 4, 8)
STAGES = (1, 2, 3, 4)
REGISTERS = 255
"""Most 32-bit registers of a thread."""
BYTES = {"bf16": 2, "f16": 2, "f32": 4}


def space_of(subject: Plan | Backward, workload: Workload, target: Target) -> Space:
    """The tile, warps and stages of a forward; of a backward, those of its walks over keys and over rows.

    Where there are kernels for Hopper, the family too, and how many tiles of queries one of these holds.
    """
    limit = SHARED_MEMORY[target.arch]
    if isinstance(subject, Plan):
        width = width_of(subject)
        start = next(candidates(target, workload.dtype, width))

        def too_large(settings: Settings) -> str | None:
            return _excluded(tile_of(settings), "keys", width, workload, limit, sums=1)

        if why_not_hopper(subject, workload, target) is not None:
            return Space(tuple(_choices("")), asdict(start), too_large)
        configs = list(hopper_configs(subject))
        families = Choice("family", ("hopper", "stream"))
        return Space(
            (families, *_choices("", HOPPER_TILES), Choice("queries", (1, 2))),
            {"family": "hopper", **asdict(configs[0])},
            lambda settings: _excluded_of_families(settings, subject, too_large),
        )
    width = backward_width(subject)
    steps = prepare(subject).steps
    walked = [over for over in OVERS if any(isinstance(step, Walk) and step.over == over for step in steps)]

    def excluded(settings: Settings) -> str | None:
        for over in walked:
            tile = tile_of(settings, f"{over}_")
            if problem := _excluded(tile, over, width, workload, limit, sums=2 if over == "rows" else 1):
                return f"over {over}: {problem}"
        return None

    default: dict[str, int] = {}
    for over in walked:
        start = next(backward_candidates(target, workload.dtype, width, over))
        default |= {f"{over}_{name}": value for name, value in asdict(start).items()}
    return Space(tuple(choice for over in walked for choice in _choices(f"{over}_")), default, excluded)


def _choices(prefix: str, rows: tuple[int, ...] = TILES) -> Iterator[Choice]:
    for name, settings in (("block_m", rows), ("block_n", TILES), ("warps", WARPS), ("stages", STAGES)):
        yield Choice(prefix + name, settings)


def _excluded_of_families(settings: Settings, plan: Plan, too_large: Callable[[Settings], str | None]) -> str | None:
    """The same where there are two families."""
    if settings["family"] == "stream":
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
    return Config(block_m, block_n, warps, stages)


def tiles_of(settings: Settings) -> Configs:
    """The tiles of the walks of a backward; a walk that it does not have may have any."""
    walked = [over for over in OVERS if f"{over}_block_m" in settings]
    return {**dict.fromkeys((*OVERS, "pairs"), SCATTER), **{over: tile_of(settings, f"{over}_") for over in walked}}


def rejection(kernel: Kernel | BackwardKernel, target: Target) -> str | None:
    """Why the compiler's report of a kernel says that it will not do."""
    assert isinstance(kernel, DeviceKernel | DeviceBackward), "only what was compiled has reports"
    for launch in kernel.recipe.launches:
        if fault := fault_in(kernel.report()[launch.name], launch.family, SHARED_MEMORY[target.arch]):
            return f"{launch.name} {fault}"
    return None
