"""Choosing single keys: ranks of a stretch of rows, then the highest of each row, exactly.

``rank_keys`` writes, for ``rows`` query rows from ``first`` on, one int32 a pair whose order is that of the ranks, and
the smallest int32 where a key is no candidate; ``select_keys`` reads them. What a rank that is not finite means is
settled here: infinities are the largest and the smallest number, what is not a number ranks last. Slots:

``GROUP(b, h, env)``, ``RANGES(b, h, g, i_lo, i_hi, env)``, ``VISIBLE(inside, dots, rows, b, h, g, row, i, j, env)``
    as in ``stream``; without dots.
``TERM(dot, n, b, h, g, row, i, j, env)``
    what is summed over ``n``, ``[BLOCK, INNER_BLOCK]``.
``RANK(total, b, h, g, row, i, j, env)``
    the rank from that sum.
"""

import triton
import triton.language as tl

from attnc.templates.triton.stream import add_product

LEAST: tl.constexpr = tl.constexpr(-2147483648)
LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)


@triton.jit
def ordered(x):
    """An int32 that compares as ``x`` does."""
    x = tl.where(x == 0.0, 0.0, x)
    x = tl.where(x == x, x, -LARGEST)
    x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def whose_list(program, H, G, env, LIST_HEADS: tl.constexpr, GROUP: tl.constexpr):
    """``b, h, g, line`` of who chooses: all heads together (0), a group (1), a head (2)."""
    h = program * 0
    g = program * 0
    b = program
    if LIST_HEADS == 1:
        g = program % G
        h = g * (H // G)
        b = program // G
    if LIST_HEADS == 2:
        h = program % H
        b = program // H
        g = GROUP(b, h, env)
    return b, h, g


@triton.jit
def vectors(operand, b, h, g, n, at, PLACES: tl.constexpr, WIDTH: tl.constexpr):
    """``[len(at), WIDTH]`` of an operand."""
    base = operand[0]
    stride = operand[1]
    for d in tl.static_range(len(PLACES)):
        if PLACES[d] == 0:
            base += b.to(tl.int64) * operand[1 + d]
        elif PLACES[d] == 1:
            base += h.to(tl.int64) * operand[1 + d]
        elif PLACES[d] == 2:
            base += g.to(tl.int64) * operand[1 + d]
        elif PLACES[d] == 3:
            base += n * operand[1 + d]
        else:
            stride = operand[1 + d]
    return tl.load(base + at.to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH)[None, :])


@triton.jit
def bounds(spans, N):
    """The first and the end of all keys that some ranges hold."""
    lo = N
    hi = N * 0
    for r in tl.static_range(len(spans)):
        some = spans[r][0] < spans[r][1]
        lo = tl.where(some, tl.minimum(lo, spans[r][0]), lo)
        hi = tl.where(some, tl.maximum(hi, spans[r][1]), hi)
    return tl.maximum(lo, 0).to(tl.int32), tl.minimum(hi, N).to(tl.int32)


@triton.jit
def rank_keys(
    scores,
    query,
    key,
    env,
    first,
    rows,
    H,
    G,
    M,
    N,
    COUNT,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    MANY_KEYS: tl.constexpr,
    LIST_HEADS: tl.constexpr,
    SUMMED: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    RANGES: tl.constexpr,
    VISIBLE: tl.constexpr,
    TERM: tl.constexpr,
    RANK: tl.constexpr,
):
    """Grid: a program for each tile of keys, of rows, and chooser. ``scores [choosers, rows, N]``.

    The dimensions of ``query`` and ``key`` run over ``b h g n`` and the token, in this order numbered from 0. With
    ``MANY_KEYS`` keys differ along ``n``.

    Tiles without a visible key are left as they are: ``select_keys`` does not look there.
    """
    key_tiles = tl.cdiv(N, INNER_BLOCK)
    row_tiles = tl.cdiv(rows, BLOCK)
    program = tl.program_id(0)
    chooser = program // key_tiles // row_tiles
    b, h, g = whose_list(chooser, H, G, env, LIST_HEADS, GROUP)
    begin = program // key_tiles % row_tiles * BLOCK
    within = begin + tl.arange(0, BLOCK)
    at = tl.minimum(first + within, M - 1)
    inner = program % key_tiles * INNER_BLOCK
    last = tl.minimum(first + begin + BLOCK, M) - 1
    lo, hi = bounds(RANGES(b, h, g, first + begin + N - M, last + N - M, env), N)
    if (inner < hi) & (inner + INNER_BLOCK > lo):
        inner_at = tl.minimum(inner + tl.arange(0, INNER_BLOCK), N - 1)
        row = at[:, None]
        i = row + (N - M)
        j = inner_at[None, :]
        total = tl.full([BLOCK, INNER_BLOCK], 0.0, tl.float32)
        if SUMMED:
            if WIDTH > 0:
                if not MANY_KEYS:
                    right = vectors(key, b, h, g, b, inner_at, KEY, WIDTH)
            for n in tl.range(0, COUNT, num_stages=STAGES):
                dot = total * 0.0
                if WIDTH > 0:
                    left = vectors(query, b, h, g, n, at, QUERY, WIDTH)
                    if MANY_KEYS:
                        right = vectors(key, b, h, g, n, inner_at, KEY, WIDTH)
                    dot = add_product(tl.full([BLOCK, INNER_BLOCK], 0.0, tl.float32), left, right.T, PRECISION)
                total += TERM(dot, n, b, h, g, row, i, j, env)
        found = RANK(total, b, h, g, row, i, j, env)
        inside = (inner + tl.arange(0, INNER_BLOCK) < N)[None, :] & (row >= 0)
        visible = VISIBLE(inside, (), (), b, h, g, row, i, j, env)
        value = tl.where(visible, ordered(found + total * 0.0), LEAST)
        line = scores + (chooser.to(tl.int64) * rows + within)[:, None] * N + j
        tl.store(line, value, mask=inside & (within < rows)[:, None])


@triton.jit
def digits(line, lo, hi, prefix, SHIFT: tl.constexpr, SIZE: tl.constexpr):
    """How many candidates whose digits above ``SHIFT + 8`` are ``prefix`` have each digit: ``[256]``."""
    counts = tl.full([256], 0, tl.int32)
    for start in tl.range(lo, hi, SIZE):
        at = start + tl.arange(0, SIZE)
        value = tl.load(line + at, mask=at < hi, other=LEAST)
        bits = (value ^ LEAST).to(tl.uint32, bitcast=True)
        there = (at < hi) & (value != LEAST)
        if SHIFT < 24:
            there = there & ((bits >> (SHIFT + 8)) == prefix)
        counts += tl.histogram(((bits >> SHIFT) & 255).to(tl.int32), 256, mask=there)
    return counts


@triton.jit
def select_keys(
    scores,
    numbers,
    counts,
    env,
    first,
    rows,
    H,
    G,
    M,
    N,
    LONGEST,
    SIZE: tl.constexpr,
    LIST_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    RANGES: tl.constexpr,
):
    """Grid: a program for each row and chooser. ``numbers [choosers, M, LONGEST]`` ascend; ties go to the lower key.

    Four passes find the lowest rank that is taken, digit by digit; a fifth writes.
    """
    program = tl.program_id(0)
    chooser = program // rows
    within = program % rows
    row = first + within
    if row < M:
        b, h, g = whose_list(chooser, H, G, env, LIST_HEADS, GROUP)
        lo, hi = bounds(RANGES(b, h, g, row + N - M, row + N - M, env), N)
        line = scores + (chooser.to(tl.int64) * rows + within) * N
        digit = tl.arange(0, 256)
        found = digits(line, lo, hi, lo.to(tl.uint32), 24, SIZE)
        wanted = tl.minimum(tl.sum(found, 0), LONGEST)
        need = wanted
        prefix = (wanted * 0).to(tl.uint32)
        for level in tl.static_range(4):
            if level > 0:
                found = digits(line, lo, hi, prefix, 24 - 8 * level, SIZE)
            above = tl.sum(found, 0) - tl.cumsum(found, 0)
            here = (above < need) & (need <= above + found)
            prefix = prefix * 256 + tl.sum(tl.where(here, digit, 0), 0).to(tl.uint32)
            need -= tl.sum(tl.where(here, above, 0), 0)
        lowest = prefix.to(tl.int32, bitcast=True) ^ LEAST
        place = numbers + (chooser.to(tl.int64) * M + row) * LONGEST
        written = wanted * 0
        ties = wanted * 0
        if wanted > 0:
            for start in tl.range(lo, hi, SIZE):
                at = start + tl.arange(0, SIZE)
                value = tl.load(line + at, mask=at < hi, other=LEAST)
                there = (at < hi) & (value != LEAST)
                equal = (there & (value == lowest)).to(tl.int32)
                kept = (there & (value > lowest)) | ((equal > 0) & (ties + tl.cumsum(equal, 0) <= need))
                some = kept.to(tl.int32)
                to = written + tl.cumsum(some, 0) - 1
                tl.store(place + to, at, mask=kept & (to < LONGEST))
                written += tl.sum(some, 0)
                ties += tl.sum(equal, 0)
        tl.store(counts + chooser.to(tl.int64) * M + row, wanted)
