"""Sums of a number a pair at places that the pair names, as gradients of tables need them: the same bits every time.

Pairs meet in any order, so they are summed in integers: ``scatter`` with ``MEASURE`` finds the largest number of each
head, ``scatter`` without it adds multiples of a power of two that is as fine as no sum of all pairs overflows, and
``settle`` writes them as reals. A sum is exact but for ``M * N * largest * 2**-60``.

``TERM(dots, rows, b, h, g, row, i, j, env)`` gives the number, the place within the head's part of the result, and
whether that place exists, each over the pairs of a tile. The other slots and tables are those of ``stream``.
"""

import triton
import triton.language as tl

from attnc.templates.triton.segments import count_full, count_masked, disjoint, full_tile, masked_tile
from attnc.templates.triton.stream import load_chunks, multiply, positions

INFINITY_BITS: tl.constexpr = tl.constexpr(0x7F800000)
NOWHERE: tl.constexpr = tl.constexpr(0x7FFFFFFF)


@triton.jit
def shift_of(bits, M, N):
    """The power of two to multiply by, given the bits of the largest of ``M * N`` float32 numbers."""
    pairs = tl.log2(M.to(tl.float32)) + tl.log2(N.to(tl.float32))
    return 59 - ((bits >> 23) - 127) - tl.ceil(pairs).to(tl.int32)


@triton.jit
def scaled(x, shift):
    """``x * 2 ** shift``, in two steps as the power itself may overflow."""
    half = shift >> 1
    return x * tl.exp2(half.to(tl.float32)) * tl.exp2((shift - half).to(tl.float32))


@triton.jit
def scatter(
    outers,
    inners,
    lists,
    env,
    total,
    largest,
    head_size,
    H,
    M,
    N,
    OVER_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    LISTED: tl.constexpr,
    LISTS_PER_BATCH: tl.constexpr,
    LISTS_PER_HEAD: tl.constexpr,
    OUTER_HEADS: tl.constexpr,
    INNER_HEADS: tl.constexpr,
    OUTER_CHUNKS: tl.constexpr,
    INNER_CHUNKS: tl.constexpr,
    DOTS: tl.constexpr,
    PRECISION: tl.constexpr,
    MEASURE: tl.constexpr,
    GROUP: tl.constexpr,
    RANGES: tl.constexpr,
    ROWS: tl.constexpr,
    VISIBLE: tl.constexpr,
    TERM: tl.constexpr,
):
    """Grid: a program for each tile of rows, query head and batch row."""
    tiles = tl.cdiv(M, BLOCK)
    program = tl.program_id(0)
    outer_tile = program % tiles
    h = program // tiles % H
    b = program // tiles // H
    g = GROUP(b, h, env)
    first = outer_tile * BLOCK
    raw = tl.arange(0, BLOCK)
    exists = (first + raw < M)[:, None]
    at = tl.minimum(raw, M - 1 - first)
    token = (first + at)[:, None]
    row, i, j = positions(token, token, M, N, OVER_ROWS)
    rows = ROWS(b, h, g, row, i, j, env)
    outer = load_chunks(outers, b, h, g, first, at, 0, len(OUTER_CHUNKS), OUTER_CHUNKS, OUTER_HEADS)
    head = b.to(tl.int64) * H + h
    peak = program * 0
    if MEASURE:
        shift = program * 0
    else:
        shift = shift_of(tl.load(largest + head), M, N)

    inner_tiles = tl.cdiv(N, INNER_BLOCK)
    if LISTED:
        full_list, masked_list, counts = lists
        line = outer_tile
        if LISTS_PER_BATCH and LISTS_PER_HEAD:
            line += (b * H + h) * tiles
        elif LISTS_PER_BATCH:
            line += b * tiles
        elif LISTS_PER_HEAD:
            line += h * tiles
        full_list += line.to(tl.int64) * inner_tiles
        masked_list += line.to(tl.int64) * inner_tiles
        full = tl.load(counts + line * 2)
        masked = tl.load(counts + line * 2 + 1)
    else:
        hi = tl.minimum(first + BLOCK, M) - 1 + N - M
        runs = disjoint(RANGES(b, h, g, first + N - M, hi, env), 0, N, INNER_BLOCK)
        full = count_full(runs)
        masked = count_masked(runs)

    for t in tl.range(0, full + masked, num_stages=STAGES):
        if LISTED:
            full_index = tl.load(full_list + t, mask=t < full, other=0)
            tile = full_index + tl.load(masked_list + (t - full), mask=t >= full, other=0)
        else:
            tile = tl.where(t < full, full_tile(runs, t), masked_tile(runs, t - full))
        inner_first = tile * INNER_BLOCK
        inner_raw = tl.arange(0, INNER_BLOCK)
        inside = exists & (inner_first + inner_raw < N)[None, :]
        inner_at = tl.minimum(inner_raw, N - 1 - inner_first)
        at_row, at_i, at_j = positions(token, (inner_first + inner_at)[None, :], M, N, OVER_ROWS)
        loaded = load_chunks(
            inners, b, h, g, inner_first, inner_at, 0, len(INNER_CHUNKS), INNER_CHUNKS, INNER_HEADS
        )  # fmt: skip
        dots = multiply(outer, loaded, BLOCK, INNER_BLOCK, DOTS, PRECISION)
        visible = VISIBLE(inside, dots, rows, b, h, g, at_row, at_i, at_j, env)
        term, place, there = TERM(dots, rows, b, h, g, at_row, at_i, at_j, env)
        kept = visible & there
        term = tl.where(kept, term, 0.0)
        if MEASURE:
            bits = tl.abs(term).to(tl.int32, bitcast=True)
            peak = tl.maximum(peak, tl.max(tl.max(bits, 1), 0))
        else:
            units = tl.floor(scaled(term, shift) + 0.5).to(tl.int64)
            lowest = tl.min(tl.min(tl.where(kept, place, NOWHERE), 1), 0)
            highest = tl.max(tl.max(tl.where(kept, place, -1), 1), 0)
            base = total + head * head_size
            if lowest == highest:
                tl.atomic_add(base + lowest, tl.sum(tl.sum(units, 1), 0), sem="relaxed")
            else:
                tl.atomic_add(base + place, units, mask=kept, sem="relaxed")
    if MEASURE:
        tl.atomic_max(largest + head, peak, sem="relaxed")


@triton.jit
def settle(out, total, largest, head_size, M, N, BLOCK: tl.constexpr):
    """Grid: a program for each head. The sums as float32; NaN where a number was not finite."""
    head = tl.program_id(0)
    bits = tl.load(largest + head)
    shift = shift_of(bits, M, N)
    base = head.to(tl.int64) * head_size
    for first in tl.range(0, head_size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        units = tl.load(total + base + at, mask=at < head_size, other=0)
        value = scaled(units.to(tl.float32), -shift)
        value = tl.where(bits >= INFINITY_BITS, float("nan"), value)
        tl.store(out + base + at, value, mask=at < head_size)
