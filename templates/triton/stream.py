"""One walk over the keys: the kernel of the families ``stream`` and ``twopass``.

A program holds a tile of ``BLOCK_M`` query rows, walks the key tiles its rows can see (first those that need no
mask, then the others), and carries row statistics and accumulators. A spec decides what is in the slots:

``GROUP(b, h, env)``
    the key/value head.
``RANGES(b, h, g, i_lo, i_hi, env)``
    ranges of keys ``(lo, hi, full_lo, full_hi)`` that rows ``i_lo..i_hi`` see; not called where ``LISTED``.
``ROWS(b, h, g, row, i, env)``
    what depends on the row alone and is needed for every key tile, ``[BLOCK_M, 1]`` each.
``VISIBLE(inside, dots, rows, b, h, g, row, i, j, env)``
    the mask over the pairs of a tile; ``inside`` says which keys exist.
``STEP(dots, visible, rows, b, h, g, row, i, j, state, env, MASKED)``
    the new state, the factors of what was accumulated relative to a shift, and the weights of the tile.
``FINISH(sums, state, rows, b, h, g, row, i, lane, env)``
    the vectors to write, at lanes ``lane``.
``FINISH_ROWS(state, rows, b, h, g, row, i, env)``
    the numbers a row to write, ``[BLOCK_M, 1]`` each.

Slots get positions and never make them (no ``arange``), so that they serve kernels with explicit layouts too:
``row`` and ``i`` are ``[BLOCK_M, 1]``, ``j`` is ``[1, BLOCK_N]``, the parts of ``state`` are ``[BLOCK_M]``, ``b h g``
are scalars. Rows and keys past the end repeat the last one, and are neither counted nor written.
``env`` holds the run-time numbers and tensors that the slots use.

``PER_QUERY_HEAD`` says of each key tensor whether it has a head for each query head. ``lists`` come from ``tiles``.

Vectors come in chunks of a power of two lanes ``(source, lo, valid, padded)``; ``DOTS`` lists the products of
chunks ``(query chunk, key chunk, starts a dot, ends it)``, ``SUMS`` the accumulator chunks ``(key chunk, weight,
rescale factor or -1, wide)``, where a wide sum is taken in tf32 because its weights could overflow in float16.
"""

import triton
import triton.language as tl

from attnc.templates.triton.segments import count_full, count_masked, disjoint, full_tile, masked_tile

WIDE_PRECISION: tl.constexpr = tl.constexpr("tf32")
"""tf32 has the mantissa of float16 and the exponents of float32."""


@triton.jit
def load_chunk(base, at, stride, CHUNKS: tl.constexpr, C: tl.constexpr):
    """The lanes of a chunk at positions ``at`` relative to ``base``: ``[len(at), padded]``."""
    lane = tl.arange(0, CHUNKS[C][3])
    address = base + at[:, None] * stride + (CHUNKS[C][1] + lane)[None, :]
    if CHUNKS[C][2] == CHUNKS[C][3]:
        chunk = tl.load(address)
    else:
        chunk = tl.load(address, mask=(lane < CHUNKS[C][2])[None, :], other=0.0)
    return chunk


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    """``total + a @ b``. ``f32`` widens the operands first: Triton's interpreter has no product of bfloat16."""
    if PRECISION == "f32":
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def load_key_chunks(
    keys,
    b,
    h,
    g,
    first,
    at,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    CHUNKS: tl.constexpr,
    PER_QUERY_HEAD: tl.constexpr,
):
    """The chunks ``FIRST..LAST`` of the keys ``first + at``."""
    loaded = ()
    for c in tl.static_range(FIRST, LAST):
        pointer, stride_b, stride_head, stride_token = keys[CHUNKS[c][0]]
        head = h if PER_QUERY_HEAD[CHUNKS[c][0]] else g
        base = pointer + b.to(tl.int64) * stride_b + head.to(tl.int64) * stride_head
        base += first.to(tl.int64) * stride_token
        loaded = loaded + (load_chunk(base, at, stride_token, CHUNKS, c),)
    return loaded


@triton.jit
def visit(
    tile,
    queries,
    keys,
    rows,
    b,
    h,
    g,
    row,
    i,
    state,
    sums,
    env,
    N,
    MASKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEY_CHUNKS: tl.constexpr,
    VALUES: tl.constexpr,
    DOTS: tl.constexpr,
    SUMS: tl.constexpr,
    PER_QUERY_HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
):
    """The state and the sums after the keys of one tile."""
    first = tile * BLOCK_N
    at = tl.arange(0, BLOCK_N)
    inside = (first + at < N)[None, :]
    if MASKED:
        at = tl.minimum(at, N - 1 - first)
    j = (first + at)[None, :]
    loaded = load_key_chunks(keys, b, h, g, first, at, 0, VALUES, KEY_CHUNKS, PER_QUERY_HEAD)
    dots = ()
    for x in tl.static_range(len(DOTS)):
        if DOTS[x][2]:
            dot = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
        dot = add_product(dot, queries[DOTS[x][0]], loaded[DOTS[x][1]].T, PRECISION)
        if DOTS[x][3]:
            dots = dots + (dot,)
    visible = inside
    if MASKED:
        visible = VISIBLE(inside, dots, rows, b, h, g, row, i, j, env)
    state, factors, weights = STEP(dots, visible, rows, b, h, g, row, i, j, state, env, MASKED)
    loaded = loaded + load_key_chunks(
        keys, b, h, g, first, at, VALUES, len(KEY_CHUNKS), KEY_CHUNKS, PER_QUERY_HEAD
    )  # fmt: skip
    new_sums = ()
    for s in tl.static_range(len(SUMS)):
        total = sums[s]
        if SUMS[s][2] >= 0:
            total = total * factors[SUMS[s][2]][:, None]
        value = loaded[SUMS[s][0]]
        weight = weights[SUMS[s][1]]
        if SUMS[s][3]:
            total = add_product(total, weight, value.to(tl.float32), WIDE_PRECISION)
        else:
            total = add_product(total, weight.to(value.dtype), value, PRECISION)
        new_sums = new_sums + (total,)
    return state, new_sums


@triton.jit
def stream(
    queries,
    keys,
    outs,
    row_outs,
    lists,
    env,
    H,
    M,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    LISTED: tl.constexpr,
    LISTS_PER_BATCH: tl.constexpr,
    LISTS_PER_HEAD: tl.constexpr,
    PER_QUERY_HEAD: tl.constexpr,
    QUERY_CHUNKS: tl.constexpr,
    KEY_CHUNKS: tl.constexpr,
    VALUES: tl.constexpr,
    DOTS: tl.constexpr,
    SUMS: tl.constexpr,
    STARTS: tl.constexpr,
    OUT_CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    RANGES: tl.constexpr,
    ROWS: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
    FINISH: tl.constexpr,
    FINISH_ROWS: tl.constexpr,
):
    """Grid: one program for each tile of rows, head and batch row. ``keys[:VALUES]`` feed the dot products."""
    tiles = tl.cdiv(M, BLOCK_M)
    program = tl.program_id(0)
    tile_m = tiles - 1 - program % tiles
    h = program // tiles % H
    b = program // tiles // H
    g = GROUP(b, h, env)
    first = tile_m * BLOCK_M
    at = tl.minimum(tl.arange(0, BLOCK_M), M - 1 - first)
    row = (first + at)[:, None]
    i = row + (N - M)
    rows = ROWS(b, h, g, row, i, env)

    query = ()
    for c in tl.static_range(len(QUERY_CHUNKS)):
        pointer, stride_b, stride_h, stride_row = queries[QUERY_CHUNKS[c][0]]
        base = pointer + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h + first.to(tl.int64) * stride_row
        query = query + (load_chunk(base, at, stride_row, QUERY_CHUNKS, c),)
    state = ()
    for s in tl.static_range(len(STARTS)):
        state = state + (tl.full([BLOCK_M], STARTS[s], tl.float32),)
    sums = ()
    for s in tl.static_range(len(SUMS)):
        sums = sums + (tl.full([BLOCK_M, KEY_CHUNKS[SUMS[s][0]][3]], 0.0, tl.float32),)

    if LISTED:
        full_list, masked_list, counts = lists
        line = tile_m
        if LISTS_PER_BATCH and LISTS_PER_HEAD:
            line += (b * H + h) * tiles
        elif LISTS_PER_BATCH:
            line += b * tiles
        elif LISTS_PER_HEAD:
            line += h * tiles
        full_list += line.to(tl.int64) * tl.cdiv(N, BLOCK_N)
        masked_list += line.to(tl.int64) * tl.cdiv(N, BLOCK_N)
        full = tl.load(counts + line * 2)
        masked = tl.load(counts + line * 2 + 1)
    else:
        i_hi = tl.minimum(first + BLOCK_M, M) - 1 + N - M
        runs = disjoint(RANGES(b, h, g, first + N - M, i_hi, env), N, BLOCK_N)
        full = count_full(runs)
        masked = count_masked(runs)

    for t in tl.range(0, full, num_stages=STAGES):
        if LISTED:
            tile = tl.load(full_list + t)
        else:
            tile = full_tile(runs, t)
        state, sums = visit(
            tile, query, keys, rows, b, h, g, row, i, state, sums, env, N,
            False, BLOCK_M, BLOCK_N, KEY_CHUNKS, VALUES, DOTS, SUMS, PER_QUERY_HEAD, PRECISION, VISIBLE, STEP,
        )  # fmt: skip
    for t in tl.range(0, masked, num_stages=STAGES):
        if LISTED:
            tile = tl.load(masked_list + t)
        else:
            tile = masked_tile(runs, t)
        state, sums = visit(
            tile, query, keys, rows, b, h, g, row, i, state, sums, env, N,
            True, BLOCK_M, BLOCK_N, KEY_CHUNKS, VALUES, DOTS, SUMS, PER_QUERY_HEAD, PRECISION, VISIBLE, STEP,
        )  # fmt: skip

    at = tl.arange(0, BLOCK_M)
    exists = first + at < M
    numbers = FINISH_ROWS(state, rows, b, h, g, row, i, env)
    for r in tl.static_range(len(row_outs)):
        line = row_outs[r] + (b.to(tl.int64) * H + h) * M + first + at
        tl.store(line[:, None], numbers[r], mask=exists[:, None])
    for c in tl.static_range(len(OUT_CHUNKS)):
        lane = tl.arange(0, OUT_CHUNKS[c][2])
        parts = ()
        for s in tl.static_range(c, len(SUMS), len(OUT_CHUNKS)):
            parts = parts + (sums[s],)
        vectors = FINISH(parts, state, rows, b, h, g, row, i, (OUT_CHUNKS[c][0] + lane)[None, :], env)
        for o in tl.static_range(len(outs)):
            pointer, stride_b, stride_h, stride_row = outs[o]
            base = pointer + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h + first.to(tl.int64) * stride_row
            address = base + at[:, None] * stride_row + (OUT_CHUNKS[c][0] + lane)[None, :]
            kept = exists[:, None] & (lane < OUT_CHUNKS[c][1])[None, :]
            tl.store(address, vectors[o].to(pointer.dtype.element_ty), mask=kept)
