"""What the tuner may choose of a Triton kernel, and which of it can be ruled out without running anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from attnc.analyse.gradient.backward import Backward, Walk
from attnc.backends.protocol import BackwardKernel, Choice, Kernel, Space, Target, Workload
from attnc.backends.protocol import Config as Settings
from attnc.backends.triton.adjoint import prepare
from attnc.backends.triton.compiling import width_of
from attnc.backends.triton.compiling_backward import OVERS, Configs, backward_width
from attnc.backends.triton.configs import SCATTER, SHARED_MEMORY, Config, backward_candidates, candidates
from attnc.backends.triton.kernel import DeviceBackward, DeviceKernel
from attnc.backends.triton.report import fault_in
from attnc.plan import Plan

TILES = (16, 32, 64, 128, 256)
WARPS = (2, 4, 8)
STAGES = (1, 2, 3, 4)
REGISTERS = 255
"""Most 32-bit registers of a thread."""
BYTES = {"bf16": 2, "f16": 2, "f32": 4}


def space_of(subject: Plan | Backward, workload: Workload, target: Target) -> Space:
    """The tile, warps and stages of a forward; of a backward, those of its walks over keys and over rows."""
    limit = SHARED_MEMORY[target.arch]
    if isinstance(subject, Plan):
        width = width_of(subject)
        start = next(candidates(target, workload.dtype, width))
        return Space(
            tuple(_choices("")),
            asdict(start),
            lambda settings: _excluded(tile_of(settings), "keys", width, workload, limit, sums=1),
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


def _choices(prefix: str) -> Iterator[Choice]:
    for name, settings in (("block_m", TILES), ("block_n", TILES), ("warps", WARPS), ("stages", STAGES)):
        yield Choice(prefix + name, settings)


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
    return Config(*(int(settings[prefix + name]) for name in ("block_m", "block_n", "warps", "stages")))


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
