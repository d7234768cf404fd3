"""Tile shapes: where compilation starts, and what to try when a kernel does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from attnc.backends.protocol import Target


@dataclass(frozen=True, slots=True)
class Config:
    """Rows and keys of a tile, warps of a program, and stages of its software pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class SplitConfig(Config):
    """For calls with few rows: the keys are walked in parts, side by side."""


@dataclass(frozen=True, slots=True)
class GatherConfig(Config):
    """For keys given by number: a tile has the heads that share a list at one row, and so many keys of the list."""


@dataclass(frozen=True, slots=True)
class RegroupConfig(Config):
    """For masks that are lists: queries are sorted by the blocks in their lists first."""


SHARED_MEMORY = {"sm_80": 165_888, "sm_90": 231_424, "sm_100": 231_424, "gfx942": 65_536}
"""Bytes of shared memory that one program may have; NVIDIA's limit less the KiB that the system keeps."""

INTERPRETER = Config(32, 32, 1, 1)
"""Small tiles: the interpreter's sizes are small, and several tiles should be visited."""

INTERPRETER_SPLIT = SplitConfig(32, 32, 1, 1)
INTERPRETER_REGROUP = RegroupConfig(16, 16, 1, 1)

LARGEST_HELD = 128
"""Keys that a program that walks over queries may hold: those of a block."""

FEW_HEADS, MANY_HEADS = 16, 64
"""Heads of a tile where keys are given by number: as few as a matrix product takes, or more, which share loads."""

INTERPRETER_GATHER = GatherConfig(16, 16, 1, 1)

_16BIT: dict[str, tuple[tuple[int, Config], ...]] = {
    "sm_80": ((64, Config(128, 64, 4, 3)), (128, Config(128, 64, 8, 3)), (256, Config(64, 64, 8, 2))),
    "sm_90": ((64, Config(128, 64, 4, 3)), (128, Config(64, 64, 4, 3)), (256, Config(128, 64, 8, 2))),
    "sm_100": ((64, Config(128, 64, 4, 3)), (128, Config(128, 64, 8, 3)), (256, Config(128, 64, 8, 2))),
    "gfx942": ((64, Config(128, 64, 4, 1)), (128, Config(128, 64, 4, 1)), (256, Config(64, 32, 4, 1))),
}
_32BIT: dict[str, tuple[tuple[int, Config], ...]] = {
    "sm_80": (
        (32, Config(64, 32, 4, 2)), (64, Config(64, 32, 4, 1)), (96, Config(64, 16, 8, 1)),
        (128, Config(32, 16, 8, 1)), (256, Config(16, 16, 8, 1)),
    ),
    "sm_90": (
        (32, Config(64, 64, 4, 2)), (64, Config(64, 32, 4, 1)), (128, Config(64, 16, 8, 1)),
        (192, Config(32, 16, 8, 1)), (256, Config(16, 16, 8, 1)),
    ),
    "sm_100": (
        (32, Config(64, 32, 4, 2)), (64, Config(64, 32, 4, 1)), (96, Config(64, 16, 8, 1)),
        (128, Config(32, 16, 8, 1)), (256, Config(16, 16, 8, 1)),
    ),
    "gfx942": ((64, Config(64, 32, 4, 1)), (128, Config(32, 32, 4, 1)), (256, Config(32, 16, 4, 1))),
}  # fmt: skip
"""By architecture: the first entry whose width is not exceeded by the wider of key and value chunks together."""


SCATTER = Config(64, 32, 8, 1)
"""Of kernels that add at places: each pair takes many registers."""

_BACKWARD_16BIT: dict[str, tuple[tuple[int, dict[str, Config]], ...]] = {
    "sm_80": (
        (64, {"keys": Config(128, 64, 8, 2), "rows": Config(64, 128, 8, 2)}),
        (128, {"keys": Config(64, 64, 4, 2), "rows": Config(64, 64, 8, 1)}),
        (256, {"keys": Config(64, 32, 8, 1), "rows": Config(32, 64, 8, 1)}),
    ),
    "sm_90": (
        (64, {"keys": Config(64, 64, 4, 3), "rows": Config(64, 64, 4, 3)}),
        (128, {"keys": Config(64, 64, 4, 2), "rows": Config(64, 128, 8, 2)}),
        (256, {"keys": Config(64, 32, 8, 1), "rows": Config(32, 64, 8, 1)}),
    ),
    "gfx942": (
        (64, {"keys": Config(128, 64, 8, 1), "rows": Config(64, 128, 8, 1)}),
        (128, {"keys": Config(64, 64, 8, 1), "rows": Config(32, 64, 8, 1)}),
        (256, {"keys": Config(32, 32, 8, 1), "rows": Config(32, 32, 8, 1)}),
    ),
}
_BACKWARD_16BIT["sm_100"] = _BACKWARD_16BIT["sm_90"]
_BACKWARD_32BIT: tuple[tuple[int, dict[str, Config]], ...] = (
    (32, {"keys": Config(32, 32, 4, 1), "rows": Config(32, 32, 4, 1)}),
    (64, {"keys": Config(32, 32, 4, 1), "rows": Config(32, 32, 4, 1)}),
    (256, {"keys": Config(16, 16, 8, 1), "rows": Config(16, 16, 8, 1)}),
)


def split_candidates() -> Iterator[SplitConfig]:
    """Configurations for calls with few rows, to try in order: a tile as short as products by tensor cores allow."""
    for block_n, stages in ((64, 3), (64, 2), (32, 2), (32, 1), (16, 1)):
        yield SplitConfig(16, block_n, 4, stages)


def backward_candidates(target: Target, dtype: str, width: int, over: str) -> Iterator[Config]:
    """The same for one traversal of a backward; the outer axis is that of the rows for walks over the keys."""
    table = _BACKWARD_32BIT if dtype == "f32" else _BACKWARD_16BIT[target.arch]
    config = next((configs[over] for widest, configs in table if width <= widest), table[-1][1][over])
    yield config
    while True:
        inner, outer = ("block_n", "block_m") if over == "keys" else ("block_m", "block_n")
        if config.stages > 1:
            config = replace(config, stages=config.stages - 1)
        elif getattr(config, inner) > 16 and getattr(config, inner) * 2 >= getattr(config, outer):
            config = replace(config, **{inner: getattr(config, inner) // 2})
        elif getattr(config, outer) > 16:
            config = replace(config, **{outer: getattr(config, outer) // 2})
        elif config.warps < 8:
            config = replace(config, warps=config.warps * 2)
        else:
            return
        yield config


_GATHER: tuple[tuple[int, int, int, tuple[tuple[int, int, int], ...]], ...] = (
    (2, 16, 128, ((64, 4, 3), (64, 4, 2), (32, 4, 2))),
    (2, 16, 256, ((64, 8, 2), (32, 8, 2), (32, 4, 1))),
    (2, 16, 1024, ((64, 8, 2), (32, 8, 2), (32, 8, 1), (16, 8, 1))),
    (2, 64, 256, ((64, 4, 3), (64, 4, 2), (64, 8, 2), (32, 8, 2), (32, 8, 1))),
    (2, 64, 1024, ((64, 8, 2), (32, 8, 2), (32, 8, 1), (16, 8, 1))),
    (4, 64, 128, ((32, 4, 2), (32, 4, 1), (16, 4, 1), (16, 8, 1))),
    (4, 64, 1024, ((16, 8, 1), (16, 4, 1))),
)
"""By bytes of an element, heads and lanes: keys, warps and stages."""


def gather_candidates(target: Target, dtype: str, width: int, heads: int) -> Iterator[GatherConfig]:
    """What to try for keys given by number, in order, for tiles of ``heads`` heads."""
    size = 4 if dtype == "f32" else 2
    heads = min(heads, 32) if width > 256 else heads  # more do not fit the registers
    tried = next(one for *most, one in _GATHER if most[0] == size and heads <= most[1] and width <= most[2])
    for keys, warps, stages in tried:
        yield GatherConfig(heads, keys, warps, 1 if target.kind == "hip" else stages)
    yield GatherConfig(heads, 16, 8, 1)


def heads_for(sizes: Mapping[str, int]) -> int:
    """Heads of a tile where keys are given by number, for calls of such sizes."""
    return MANY_HEADS if sizes and sizes["H"] >= 2 * FEW_HEADS * max(1, sizes["G"]) else FEW_HEADS


def ranking_candidates(dtype: str) -> Iterator[Config]:
    """The same for what chooses: queries, and blocks of a tile."""
    if dtype != "f32":
        yield Config(128, 64, 8, 1)
        yield Config(128, 32, 8, 1)
    yield Config(64, 64, 4, 1)
    yield Config(64, 32, 8, 1)
    yield Config(32, 32, 4, 1)
    yield Config(16, 16, 4, 1)


def regroup_candidates(tried: Iterator[Config], block: int, stages: int, holds: bool) -> Iterator[RegroupConfig]:
    """The same where keys are of one block: ``holds`` says that a block may be held as a whole, if it is small."""
    whole = max(16, 1 << (block - 1).bit_length())
    first = True
    for config in tried:
        keys = min(config.block_n, whole)
        if first and holds and whole <= LARGEST_HELD:
            yield RegroupConfig(min(config.block_m, 64), whole, 4, stages)
            yield RegroupConfig(min(config.block_m, 64), whole, 4, 1)
        elif first and holds:
            yield RegroupConfig(2 * config.block_m, keys, 2 * config.warps, stages)
        first = False
        yield RegroupConfig(config.block_m, keys, config.warps, min(config.stages, stages))


def candidates(target: Target, dtype: str, width: int) -> Iterator[Config]:
    """Configurations to try in order: a tile with all its stages and then fewer, which take less shared memory; then
    a smaller tile, which takes fewer registers too.
    """
    table = (_32BIT if dtype == "f32" else _16BIT)[target.arch]
    config = next((config for widest, config in table if width <= widest), table[-1][1])
    if width > table[-1][0]:
        config = replace(config, block_m=max(16, config.block_m // 2), block_n=max(16, config.block_n // 2))
    while True:
        for stages in range(config.stages, 0, -1):
            yield replace(config, stages=stages)
        if config.block_m > max(16, config.block_n):
            config = replace(config, block_m=config.block_m // 2)
        elif config.block_n > 16:
            config = replace(config, block_n=config.block_n // 2)
        elif config.warps < 8:
            config = replace(config, warps=config.warps * 2)
        else:
            return
