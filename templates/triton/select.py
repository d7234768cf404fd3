"""Choosing blocks: what stands for them, and for each query those of highest rank, in one walk over the blocks.

Slots, besides those of ``stream``:

``RANK(dots, rows, b, h, g, row, i, j, env)``
    the rank of block ``j`` for a query, over the pairs of a tile; ``CANDIDATE``, likewise, whether it is one.
``VALUE``
    as in ``token``: what is pooled, at a tile of keys.
"""

import triton
import triton.language as tl

from attnc.templates.triton.stream import load_chunks, multiply

HIGHEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)
OWN: tl.constexpr = tl.constexpr(0)
FROM_FIRST: tl.constexpr = tl.constexpr(1)
NOBODY: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def pool(
    out,
    env,
    HEADS,
    BLOCKS,
    N,
    KEYS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    LANES: tl.constexpr,
    PER_QUERY_HEAD: tl.constexpr,
    OP: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE: tl.constexpr,
):
    """Grid: a program for each block, head and batch row. ``OP`` is ``mean``, ``sum``, ``max`` or ``min``."""
    program = tl.program_id(0)
    block = program % BLOCKS
    h = program // BLOCKS % HEADS
    b = program // BLOCKS // HEADS
    if PER_QUERY_HEAD:
        g = GROUP(b, h, env)
    else:
        g = h
    first = block * KEYS
    end = tl.minimum(first + KEYS, N)
    lanes = ()
    for width in tl.static_range(len(LANES)):
        lanes = lanes + (tl.arange(0, LANES[width])[None, :],)
    lane = tl.arange(0, PADDED)[None, :]
    nothing = 0.0
    if OP == "max":
        nothing = float("-inf")
    elif OP == "min":
        nothing = float("inf")
    total = tl.full([PADDED], nothing, tl.float32)
    for start in tl.range(first, end, BLOCK_T):
        raw = start + tl.arange(0, BLOCK_T)
        key = tl.minimum(raw, end - 1)[:, None]
        value = VALUE(b, h, g, key, key, key, lane, lanes, env)
        value = tl.where((raw < end)[:, None] & (lane >= 0), value, nothing)
        if OP == "max":
            total = tl.maximum(total, tl.max(value, 0), propagate_nan=tl.PropagateNan.ALL)
        elif OP == "min":
            total = tl.minimum(total, tl.min(value, 0), propagate_nan=tl.PropagateNan.ALL)
        else:
            total += tl.sum(value, 0)
    if OP == "mean":
        total = total / (end - first).to(tl.float32)
    pointer, stride_b, stride_head, stride_block = out
    base = pointer + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_head + block.to(tl.int64) * stride_block
    at = tl.arange(0, PADDED)
    if WIDTH == 0:
        tl.store(base + at, total, mask=at < 1)
    else:
        tl.store(base + at, total, mask=at < WIDTH)


@triton.jit
def insert(ranks, blocks, rank, block, TOP: tl.constexpr):
    """A sorted list with one more, behind those of equal rank; the last one falls out."""
    new_ranks = ()
    new_blocks = ()
    for p in tl.static_range(TOP):
        ahead = rank > ranks[p]
        new_ranks = new_ranks + (tl.where(ahead, rank, ranks[p]),)
        new_blocks = new_blocks + (tl.where(ahead, block, blocks[p]),)
        rank, block = tl.where(ahead, ranks[p], rank), tl.where(ahead, blocks[p], block)
    return new_ranks, new_blocks


@triton.jit
def consider(rank, j, ranks, blocks, TOP: tl.constexpr):
    """The lists after the blocks of a tile, which come after those in the lists: the highest is moved until none is."""
    best = tl.max(rank, 1)
    while tl.max((best > ranks[TOP - 1]).to(tl.int32), 0) > 0:
        at = tl.min(tl.where(rank == best[:, None], j, NOBODY), 1)
        ranks, blocks = insert(ranks, blocks, best, at, TOP)
        rank = tl.where(j == at[:, None], float("-inf"), rank)
        best = tl.max(rank, 1)
    return ranks, blocks


@triton.jit
def load_tile(
    tile, inners, b, h, g, BLOCKS, INNER_BLOCK: tl.constexpr, INNER_CHUNKS: tl.constexpr, INNER_HEADS: tl.constexpr
):
    """What stands for the blocks of a tile; past the end, for the last one."""
    first = tl.minimum(tile * INNER_BLOCK, BLOCKS - 1)
    at = tl.minimum(tl.arange(0, INNER_BLOCK), BLOCKS - 1 - first)
    return load_chunks(inners, b, h, g, first, at, 0, len(INNER_CHUNKS), INNER_CHUNKS, INNER_HEADS)


@triton.jit
def rank_tile(
    tile,
    loaded,
    outer,
    inners,
    rows,
    b,
    h,
    g,
    token,
    i,
    seen,
    own,
    ranks,
    blocks,
    env,
    BLOCKS,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    INNER_HEADS: tl.constexpr,
    INNER_CHUNKS: tl.constexpr,
    DOTS: tl.constexpr,
    PRECISION: tl.constexpr,
    TOP: tl.constexpr,
    SELF: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    RANK: tl.constexpr,
    CANDIDATE: tl.constexpr,
):
    """The lists after one tile of blocks, and what the next tile needs, which is on its way meanwhile.

    Blocks that are taken anyhow are left out: they are in the lists.
    """
    j = (tile * INNER_BLOCK + tl.arange(0, INNER_BLOCK))[None, :]
    dots = multiply(outer, loaded, BLOCK, INNER_BLOCK, DOTS, PRECISION)
    loaded = load_tile(tile + 1, inners, b, h, g, BLOCKS, INNER_BLOCK, INNER_CHUNKS, INNER_HEADS)
    place = j
    if MASKED:
        place = tl.minimum(j, BLOCKS - 1)
    rank = RANK(dots, rows, b, h, g, token, i, place, env)
    rank = tl.where(rank == rank, rank, -HIGHEST)
    rank = tl.minimum(tl.maximum(rank, -HIGHEST), HIGHEST)
    if MASKED:
        taken = j < seen
        if SELF:
            taken = taken & (j != own)
        if FIRST > 0:
            taken = taken & (j >= FIRST)
        if LAST > 0:
            taken = taken & (j < seen - LAST)
        taken = taken & CANDIDATE(dots, rows, b, h, g, token, i, place, env)
        rank = tl.where(taken, rank, float("-inf"))
    ranks, blocks = consider(rank, j, ranks, blocks, TOP)
    return ranks, blocks, loaded


@triton.jit
def taken_block(kind: tl.constexpr, n: tl.constexpr, seen, own):
    """The block that an item takes, or -1: the own one, the ``n``-th or the ``n``-th from behind of those seen."""
    if kind == OWN:
        block = own
    elif kind == FROM_FIRST:
        block = own * 0 + n
    else:
        block = seen - 1 - n
    return tl.where((block >= 0) & (block < seen), block, -1)


@triton.jit
def select(
    outers,
    inners,
    numbers,
    counts,
    env,
    H,
    M,
    N,
    BLOCKS,
    KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    CAUSAL: tl.constexpr,
    SIEVED: tl.constexpr,
    HELD: tl.constexpr,
    TOP: tl.constexpr,
    MOST: tl.constexpr,
    SELF: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    ALWAYS: tl.constexpr,
    ALSO: tl.constexpr,
    OUTER_HEADS: tl.constexpr,
    INNER_HEADS: tl.constexpr,
    OUTER_CHUNKS: tl.constexpr,
    INNER_CHUNKS: tl.constexpr,
    DOTS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    CANDIDATE: tl.constexpr,
):
    """Grid: a program for each tile of queries, head and batch row.

    ``numbers [B, H, M, MOST]`` and ``counts [B, H, M]``: ``TOP`` blocks, those of ``ALWAYS`` first, then those of
    ``ALSO``; lists hold ``HELD`` of the former. ``ALWAYS`` and ``ALSO`` are of pairs ``(kind, n)``; ``SELF``,
    ``FIRST`` and ``LAST`` say which blocks the former are. ``SIEVED`` says whether there are blocks that are not ranked
    besides.
    """
    tiles = tl.cdiv(M, BLOCK)
    program = tl.program_id(0)
    first = (tiles - 1 - program % tiles) * BLOCK
    h = program // tiles % H
    b = program // tiles // H
    g = GROUP(b, h, env)
    at = tl.minimum(tl.arange(0, BLOCK), M - 1 - first)
    token = (first + at)[:, None]
    i = token + (N - M)
    rows = ROWS(b, h, g, token, i, token, env)
    outer = load_chunks(outers, b, h, g, first, at, 0, len(OUTER_CHUNKS), OUTER_CHUNKS, OUTER_HEADS)
    place = first + at + (N - M)
    own = tl.where(place >= 0, place // KEYS, -1)
    seen = tl.minimum(own + 1, BLOCKS) if CAUSAL else own * 0 + BLOCKS
    ranks = ()
    blocks = ()
    for _ in tl.static_range(HELD):
        ranks = ranks + (tl.full([BLOCK], float("-inf"), tl.float32),)
        blocks = blocks + (tl.full([BLOCK], -1, tl.int32),)
    for a in tl.static_range(len(ALWAYS)):
        block = taken_block(ALWAYS[a][0], ALWAYS[a][1], seen, own)
        for p in tl.static_range(HELD):
            block = tl.where(blocks[p] == block, -1, block)
        ranks, blocks = insert(ranks, blocks, tl.where(block >= 0, float("inf"), float("-inf")), block, HELD)

    end = tl.cdiv(tl.max(seen, 0), INNER_BLOCK)
    lowest = tl.min(seen, 0) - LAST
    if SELF:
        lowest = tl.minimum(lowest, tl.min(own, 0))
    front = (FIRST + INNER_BLOCK - 1) // INNER_BLOCK
    plain = tl.maximum(lowest, 0) // INNER_BLOCK
    if SIEVED:
        plain = plain * 0
    begin = tl.minimum(front, end)
    plain = tl.maximum(plain, begin)
    start = begin if FIRST == 0 else begin * 0
    loaded = load_tile(start, inners, b, h, g, BLOCKS, INNER_BLOCK, INNER_CHUNKS, INNER_HEADS)
    if FIRST > 0:
        for t in tl.range(0, begin):
            ranks, blocks, loaded = rank_tile(
                begin * 0 + t, loaded, outer, inners, rows, b, h, g, token, i, seen[:, None], own[:, None], ranks,
                blocks, env, BLOCKS, True, BLOCK, INNER_BLOCK, INNER_HEADS, INNER_CHUNKS, DOTS, PRECISION, HELD, SELF,
                FIRST, LAST, RANK, CANDIDATE,
            )  # fmt: skip
    if not SIEVED:
        for t in tl.range(begin, plain, num_stages=STAGES):
            ranks, blocks, loaded = rank_tile(
                begin * 0 + t, loaded, outer, inners, rows, b, h, g, token, i, seen[:, None], own[:, None], ranks,
                blocks, env, BLOCKS, False, BLOCK, INNER_BLOCK, INNER_HEADS, INNER_CHUNKS, DOTS, PRECISION, HELD, SELF,
                FIRST, LAST, RANK, CANDIDATE,
            )  # fmt: skip
    for t in tl.range(plain, end):
        ranks, blocks, loaded = rank_tile(
            begin * 0 + t, loaded, outer, inners, rows, b, h, g, token, i, seen[:, None], own[:, None], ranks, blocks,
            env, BLOCKS, True, BLOCK, INNER_BLOCK, INNER_HEADS, INNER_CHUNKS, DOTS, PRECISION, HELD, SELF, FIRST,
            LAST, RANK, CANDIDATE,
        )  # fmt: skip

    line = (b.to(tl.int64) * H + h) * M + first + tl.arange(0, BLOCK)
    exists = first + tl.arange(0, BLOCK) < M
    count = tl.zeros([BLOCK], tl.int32)
    for p in tl.static_range(HELD):
        kept = ranks[p] > float("-inf")
        if p >= TOP:
            kept = kept & (ranks[p] == float("inf"))
        tl.store(numbers + line * MOST + p, blocks[p], mask=exists & kept)
        count += kept.to(tl.int32)
    held = count
    added = ()
    for a in tl.static_range(len(ALSO)):
        block = taken_block(ALSO[a][0], ALSO[a][1], seen, own)
        for p in tl.static_range(HELD):
            block = tl.where((blocks[p] == block) & (held > p), -1, block)
        for before in tl.static_range(a):
            block = tl.where(added[before] == block, -1, block)
        added = added + (block,)
        tl.store(numbers + line * MOST + count, block, mask=exists & (block >= 0))
        count += (block >= 0).to(tl.int32)
    for p in tl.static_range(MOST):
        tl.store(numbers + line * MOST + p, -1, mask=exists & (count <= p))
    tl.store(counts + line, count, mask=exists)
