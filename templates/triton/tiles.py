"""Which key tiles a tile of rows visits, where the mask's form alone does not say: lists built on the device.

For each tile of rows, the indices of its key tiles with only visible pairs and of those with some. Memory is
proportional to the number of tiles.
"""

import triton
import triton.language as tl

from attnc.templates.triton.segments import disjoint


@triton.jit
def tiles(
    full_list,
    masked_list,
    counts,
    env,
    H,
    M,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEADS: tl.constexpr,
    LOOK: tl.constexpr,
    GROUP: tl.constexpr,
    RANGES: tl.constexpr,
    EMPTY: tl.constexpr,
    FULL: tl.constexpr,
    ROWS: tl.constexpr,
    VISIBLE: tl.constexpr,
):
    """Grid: one program for each tile of rows, head (if ``HEADS``) and batch row (if the mask varies with it).

    ``EMPTY`` and ``FULL`` ``(b, h, g, i_lo, i_hi, j_lo, j_hi, env)`` settle a tile without looking at its pairs; where
    neither does, ``LOOK`` says whether to evaluate the mask.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    program = tl.program_id(0)
    tile_m = program % tiles_m
    if HEADS:
        h = program // tiles_m % H
        b = program // tiles_m // H
    else:
        h = program * 0
        b = program // tiles_m
    g = GROUP(b, h, env)
    first = tile_m * BLOCK_M
    row = tl.minimum(first + tl.arange(0, BLOCK_M), M - 1)[:, None]
    i = row + (N - M)
    i_lo = first + N - M
    i_hi = tl.minimum(first + BLOCK_M, M) - 1 + N - M
    rows = ROWS(b, h, g, row, i, env)
    runs = disjoint(RANGES(b, h, g, i_lo, i_hi, env), N, BLOCK_N)
    full_list += program.to(tl.int64) * tl.cdiv(N, BLOCK_N)
    masked_list += program.to(tl.int64) * tl.cdiv(N, BLOCK_N)
    full_count = program * 0
    masked_count = program * 0
    for r in tl.static_range(len(runs)):
        for tile in tl.range(runs[r][0], runs[r][3]):
            j_lo = tile * BLOCK_N
            j_hi = tl.minimum(j_lo + BLOCK_N, N) - 1
            whole = j_lo + BLOCK_N <= N
            full = FULL(b, h, g, i_lo, i_hi, j_lo, j_hi, env) & (i_lo <= i_hi)
            empty = EMPTY(b, h, g, i_lo, i_hi, j_lo, j_hi, env) & (i_lo <= i_hi)
            if LOOK:
                if (full | empty) == 0:
                    raw = j_lo + tl.arange(0, BLOCK_N)
                    inside = (raw < N)[None, :]
                    j = tl.minimum(raw, N - 1)[None, :]
                    visible = VISIBLE(inside, (), rows, b, h, g, row, i, j, env)
                    seen = tl.sum(tl.sum((visible & (row >= 0)).to(tl.int32), 1), 0)
                    full = seen == BLOCK_M * BLOCK_N
                    empty = seen == 0
            full = full & whole
            masked = (full | empty) == 0
            tl.store(full_list + full_count, tile, mask=full)
            tl.store(masked_list + masked_count, tile, mask=masked)
            full_count += full.to(tl.int32)
            masked_count += masked.to(tl.int32)
    tl.store(counts + program * 2, full_count)
    tl.store(counts + program * 2 + 1, masked_count)
