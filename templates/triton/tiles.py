"""Which inner tiles an outer tile visits, where the mask's form alone does not say: lists built on the device.

For each tile of rows, the indices of its key tiles with only visible pairs and of those with some; with ``OVER_ROWS``
the same for tiles of keys and their tiles of rows. Memory is proportional to the number of tiles.
"""

import triton
import triton.language as tl

from attnc.templates.triton.segments import disjoint
from attnc.templates.triton.stream import positions


@triton.jit
def tiles(
    full_list,
    masked_list,
    counts,
    env,
    H,
    M,
    N,
    OVER_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    LOOK: tl.constexpr,
    CELL: tl.constexpr,
    UNIFORM: tl.constexpr,
    GROUP: tl.constexpr,
    RANGES: tl.constexpr,
    EMPTY: tl.constexpr,
    FULL: tl.constexpr,
    ROWS: tl.constexpr,
    VISIBLE: tl.constexpr,
):
    """Grid: one program for each outer tile, head (if ``HEADS``) and batch row (if the mask varies with it).

    ``EMPTY`` and ``FULL`` ``(b, h, g, i_lo, i_hi, j_lo, j_hi, env)`` settle a tile without looking at its pairs; where
    neither does, ``LOOK`` says whether to evaluate the mask. With ``CELL`` above 1, ``VISIBLE`` is the part of the mask
    that is the same for ``CELL`` keys at a time, evaluated once for these, and ``FULL`` is about the rest of the mask.
    Where it is ``UNIFORM`` it is the same for all pairs of a tile too, if tiles of rows begin at positions that are
    multiples of their number: then many tiles are looked at together.
    """
    outer_count = N if OVER_ROWS else M
    inner_count = M if OVER_ROWS else N
    inner_origin = N - M if OVER_ROWS else 0
    outer_origin = 0 if OVER_ROWS else N - M
    outer_tiles = tl.cdiv(outer_count, BLOCK)
    program = tl.program_id(0)
    outer_tile = program % outer_tiles
    if HEADS:
        h = program // outer_tiles % H
        b = program // outer_tiles // H
    else:
        h = program * 0
        b = program // outer_tiles
    g = GROUP(b, h, env)
    first = outer_tile * BLOCK
    OUTER_CELL: tl.constexpr = CELL if OVER_ROWS else 1
    INNER_CELL: tl.constexpr = 1 if OVER_ROWS else CELL
    LOOKED: tl.constexpr = BLOCK // OUTER_CELL
    INNER_LOOKED: tl.constexpr = INNER_BLOCK // INNER_CELL
    token = tl.minimum(first + tl.arange(0, LOOKED) * OUTER_CELL, outer_count - 1)[:, None]
    lo = first + outer_origin
    hi = tl.minimum(first + BLOCK, outer_count) - 1 + outer_origin
    row, i, j = positions(token, token, M, N, OVER_ROWS)
    rows = ROWS(b, h, g, row, i, j, env)
    runs = disjoint(RANGES(b, h, g, lo, hi, env), inner_origin, inner_count, INNER_BLOCK)
    full_list += program.to(tl.int64) * tl.cdiv(inner_count, INNER_BLOCK)
    masked_list += program.to(tl.int64) * tl.cdiv(inner_count, INNER_BLOCK)
    full_count = program * 0
    masked_count = program * 0
    together = program < 0
    if UNIFORM:
        together = (N - M) % (INNER_BLOCK if OVER_ROWS else BLOCK) == 0
        if together:
            full_count, masked_count = look_together(
                runs, full_list, masked_list, env, b, h, g, lo, hi, tl.minimum(first, outer_count - 1), inner_origin,
                inner_count, M, N, OVER_ROWS, INNER_BLOCK, EMPTY, FULL, ROWS, VISIBLE,
            )  # fmt: skip
    for r in tl.static_range(len(runs)):
        for tile in tl.range(tl.where(together, runs[r][3], runs[r][0]), runs[r][3]):
            inner_first = tile * INNER_BLOCK
            inner_lo = inner_first + inner_origin
            inner_hi = tl.minimum(inner_first + INNER_BLOCK, inner_count) - 1 + inner_origin
            whole = inner_first + INNER_BLOCK <= inner_count
            if OVER_ROWS:
                full = FULL(b, h, g, inner_lo, inner_hi, lo, hi, env) & (lo <= hi)
                empty = EMPTY(b, h, g, inner_lo, inner_hi, lo, hi, env) & (lo <= hi)
            else:
                full = FULL(b, h, g, lo, hi, inner_lo, inner_hi, env) & (lo <= hi)
                empty = EMPTY(b, h, g, lo, hi, inner_lo, inner_hi, env) & (lo <= hi)
            if LOOK:
                if (empty | (full & (CELL == 1))) == 0:
                    raw = inner_first + tl.arange(0, INNER_LOOKED) * INNER_CELL
                    inside = (raw < inner_count)[None, :]
                    inner = tl.minimum(raw, inner_count - 1)[None, :]
                    at_row, at_i, at_j = positions(token, inner, M, N, OVER_ROWS)
                    visible = VISIBLE(inside, (), rows, b, h, g, at_row, at_i, at_j, env)
                    seen = tl.sum(tl.sum((visible & (at_row >= 0) & (at_j >= 0)).to(tl.int32), 1), 0)
                    full = (seen == LOOKED * INNER_LOOKED) & (full | (CELL == 1))
                    empty = seen == 0
            full = full & whole
            masked = (full | empty) == 0
            tl.store(full_list + full_count, tile, mask=full)
            tl.store(masked_list + masked_count, tile, mask=masked)
            full_count += full.to(tl.int32)
            masked_count += masked.to(tl.int32)
    tl.store(counts + program * 2, full_count)
    tl.store(counts + program * 2 + 1, masked_count)


TOGETHER: tl.constexpr = tl.constexpr(128)
"""Tiles that are looked at together."""


@triton.jit
def look_together(
    runs,
    full_list,
    masked_list,
    env,
    b,
    h,
    g,
    lo,
    hi,
    outer,
    inner_origin,
    inner_count,
    M,
    N,
    OVER_ROWS: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    EMPTY: tl.constexpr,
    FULL: tl.constexpr,
    ROWS: tl.constexpr,
    VISIBLE: tl.constexpr,
):
    """The lists of one outer tile, each tile by its first pair; how many are full, and how many need the mask."""
    token = outer + tl.zeros([1, 1], tl.int32)
    row, i, j = positions(token, token, M, N, OVER_ROWS)
    rows = ROWS(b, h, g, row, i, j, env)
    full_count = outer * 0
    masked_count = outer * 0
    for r in tl.static_range(len(runs)):
        for start in tl.range(runs[r][0], runs[r][3], TOGETHER):
            tile = start + tl.arange(0, TOGETHER)
            inner = tile * INNER_BLOCK
            there = (tile < runs[r][3]) & (inner < inner_count)
            at = tl.minimum(inner, inner_count - 1)
            inner_lo = at + inner_origin
            inner_hi = tl.minimum(inner + INNER_BLOCK, inner_count) - 1 + inner_origin
            at_row, at_i, at_j = positions(token, at[None, :], M, N, OVER_ROWS)
            visible = VISIBLE((inner < inner_count)[None, :], (), rows, b, h, g, at_row, at_i, at_j, env)
            seen = tl.max((visible & (at_row >= 0) & (at_j >= 0)).to(tl.int32), 0) > 0
            if OVER_ROWS:
                full = FULL(b, h, g, inner_lo, inner_hi, lo, hi, env) & (lo <= hi)
                empty = EMPTY(b, h, g, inner_lo, inner_hi, lo, hi, env) & (lo <= hi)
            else:
                full = FULL(b, h, g, lo, hi, inner_lo, inner_hi, env) & (lo <= hi)
                empty = EMPTY(b, h, g, lo, hi, inner_lo, inner_hi, env) & (lo <= hi)
            kept = there & seen & (empty == 0)
            full = kept & full & (inner + INNER_BLOCK <= inner_count)
            masked = kept & (full == 0)
            before = tl.cumsum(full.to(tl.int32), 0) - 1
            tl.store(full_list + full_count + before, tile, mask=full)
            before = tl.cumsum(masked.to(tl.int32), 0) - 1
            tl.store(masked_list + masked_count + before, tile, mask=masked)
            full_count += tl.sum(full.to(tl.int32), 0)
            masked_count += tl.sum(masked.to(tl.int32), 0)
    return full_count, masked_count
