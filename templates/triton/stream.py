"""One walk over the pairs: the kernel of the families ``stream`` and ``twopass``, and of gradients.

A program holds a tile of ``BLOCK`` tokens of the outer axis, walks the tiles of the inner axis that they can see or be
seen by (first those that need no mask, then the others), and carries statistics and accumulators of its tokens. The
outer axis is the query rows, or, with ``OVER_ROWS``, the keys. A spec decides what is in the slots:

``GROUP(b, h, env)``
    the key/value head.
``RANGES(b, h, g, lo, hi, env)``
    ranges of inner positions ``(lo, hi, full_lo, full_hi)`` that outer positions ``lo..hi`` see; not called where
    ``LISTED``.
``ROWS(b, h, g, row, i, j, env)``
    what depends on the outer token alone and is needed for every tile, ``[BLOCK, 1]`` each.
``VISIBLE(inside, dots, rows, b, h, g, row, i, j, env)``
    the mask over the pairs of a tile; ``inside`` says which inner tokens exist.
``STEP(dots, visible, rows, b, h, g, row, i, j, state, env, MASKED)``
    the new state, the factors of what was accumulated relative to a shift, and the weights of the tile.
``FINISH(sums, state, rows, b, h, g, row, i, lane, env, AT)``
    the vectors of the outputs ``AT``, at lanes ``lane``.
``FINISH_ROWS(state, rows, b, h, g, row, i, env)``
    the numbers a token to write, ``[BLOCK, 1]`` each.

Slots get positions and never make them (no ``arange``), so that they serve kernels with explicit layouts too:
those of the outer axis are ``[BLOCK, 1]``, those of the inner ``[1, INNER_BLOCK]``, the parts of ``state`` are
``[BLOCK]``, ``b h g`` are scalars. Outer positions stand for the inner ones where there are none. Tokens past the end
repeat the last one; past the inner end they are not counted, past the outer not written.
``env`` holds the run-time numbers and tensors that the slots use.

``OUTER_HEADS`` and ``INNER_HEADS`` say of each tensor whether it has a head for each query head. ``lists`` come from
``tiles``.

Vectors come in chunks of a power of two lanes ``(source, lo, valid, padded)``; ``DOTS`` lists the products of
chunks ``(outer chunk, inner chunk, starts a dot, ends it)``, ``SUMS`` the accumulator chunks ``(inner chunk, weight,
rescale factor or -1, wide)``, where a wide sum is taken in tf32 because its weights could overflow in float16.
``OUTPUTS`` lists the chunks that are written: ``(lo, valid, padded, first sum, distance to the next one, number of
sums, first tensor, number of tensors)``.
"""

import triton
import triton.language as tl

from attnc.templates.triton import order
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
def load_chunks(
    tensors, b, h, g, first, at, FIRST: tl.constexpr, LAST: tl.constexpr, CHUNKS: tl.constexpr, HEADS: tl.constexpr
):
    """The chunks ``FIRST..LAST`` of the tokens ``first + at``."""
    loaded = ()
    for c in tl.static_range(FIRST, LAST):
        pointer, stride_b, stride_head, stride_token = tensors[CHUNKS[c][0]]
        head = h if HEADS[CHUNKS[c][0]] else g
        base = pointer + b.to(tl.int64) * stride_b + head.to(tl.int64) * stride_head
        base += first.to(tl.int64) * stride_token
        loaded = loaded + (load_chunk(base, at, stride_token, CHUNKS, c),)
    return loaded


@triton.jit
def multiply(outer, inner, BLOCK: tl.constexpr, INNER_BLOCK: tl.constexpr, DOTS: tl.constexpr, PRECISION: tl.constexpr):
    """The dot products over the pairs of a tile, ``[BLOCK, INNER_BLOCK]`` each."""
    dots = ()
    for x in tl.static_range(len(DOTS)):
        if DOTS[x][2]:
            dot = tl.full([BLOCK, INNER_BLOCK], 0.0, tl.float32)
        dot = add_product(dot, outer[DOTS[x][0]], inner[DOTS[x][1]].T, PRECISION)
        if DOTS[x][3]:
            dots = dots + (dot,)
    return dots


@triton.jit
def positions(outer, inner, M, N, OVER_ROWS: tl.constexpr):
    """``row, i, j`` of outer and inner tokens."""
    row = outer
    j = inner
    if OVER_ROWS:
        row = inner
        j = outer
    return row, row + (N - M), j


@triton.jit
def visit(
    tile,
    outer,
    inners,
    rows,
    b,
    h,
    g,
    token,
    state,
    sums,
    env,
    M,
    N,
    MASKED: tl.constexpr,
    OVER_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    INNER_CHUNKS: tl.constexpr,
    VALUES: tl.constexpr,
    DOTS: tl.constexpr,
    SUMS: tl.constexpr,
    INNER_HEADS: tl.constexpr,
    PRECISION: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
):
    """The state and the sums after the inner tokens of one tile."""
    count = M if OVER_ROWS else N
    first = tile * INNER_BLOCK
    at = tl.arange(0, INNER_BLOCK)
    inside = (first + at < count)[None, :]
    if MASKED:
        at = tl.minimum(at, count - 1 - first)
    state, sums = visit_tokens(
        first, at, at, inside, (), outer, inners, rows, b, h, g, token, state, sums, env, M, N, MASKED, OVER_ROWS,
        BLOCK, INNER_BLOCK, INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION, VISIBLE, STEP,
    )  # fmt: skip
    return state, sums


@triton.jit
def visit_tokens(
    first,
    at,
    place,
    inside,
    held,
    outer,
    inners,
    rows,
    b,
    h,
    g,
    token,
    state,
    sums,
    env,
    M,
    N,
    MASKED: tl.constexpr,
    OVER_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    INNER_CHUNKS: tl.constexpr,
    VALUES: tl.constexpr,
    DOTS: tl.constexpr,
    SUMS: tl.constexpr,
    INNER_HEADS: tl.constexpr,
    PRECISION: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
):
    """The same for the inner tokens ``first + at``, those of which count that are ``inside``; ``place`` is ``at`` in a
    type that holds addresses. ``held`` are their chunks where they are loaded already.
    """
    row, i, j = positions(token, (first + at)[None, :], M, N, OVER_ROWS)
    loaded = held
    if len(held) == 0:
        loaded = load_chunks(inners, b, h, g, first, place, 0, VALUES, INNER_CHUNKS, INNER_HEADS)
    dots = multiply(outer, loaded, BLOCK, INNER_BLOCK, DOTS, PRECISION)
    visible = inside
    if MASKED:
        visible = VISIBLE(inside, dots, rows, b, h, g, row, i, j, env)
    state, factors, weights = STEP(dots, visible, rows, b, h, g, row, i, j, state, env, MASKED)
    if len(held) == 0:
        loaded += load_chunks(inners, b, h, g, first, place, VALUES, len(INNER_CHUNKS), INNER_CHUNKS, INNER_HEADS)
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
def visit_all(
    outer_tile, outer, inners, rows, b, h, g, first, token, state, sums, lists, env, H, M, N,
    OVER_ROWS: tl.constexpr, BLOCK: tl.constexpr, INNER_BLOCK: tl.constexpr, STAGES: tl.constexpr,
    LISTED: tl.constexpr, LISTS_PER_BATCH: tl.constexpr, LISTS_PER_HEAD: tl.constexpr,
    INNER_HEADS: tl.constexpr, INNER_CHUNKS: tl.constexpr, VALUES: tl.constexpr,
    DOTS: tl.constexpr, SUMS: tl.constexpr, PRECISION: tl.constexpr, RANGES: tl.constexpr, VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """The state and the sums after all inner tiles of one query head."""
    outer_count = N if OVER_ROWS else M
    inner_count = M if OVER_ROWS else N
    inner_origin = N - M if OVER_ROWS else 0
    outer_origin = 0 if OVER_ROWS else N - M
    if LISTED:
        full_list, masked_list, counts = lists
        tiles = tl.cdiv(outer_count, BLOCK)
        line = outer_tile
        if LISTS_PER_BATCH and LISTS_PER_HEAD:
            line += (b * H + h) * tiles
        elif LISTS_PER_BATCH:
            line += b * tiles
        elif LISTS_PER_HEAD:
            line += h * tiles
        full_list += line.to(tl.int64) * tl.cdiv(inner_count, INNER_BLOCK)
        masked_list += line.to(tl.int64) * tl.cdiv(inner_count, INNER_BLOCK)
        full = tl.load(counts + line * 2)
        masked = tl.load(counts + line * 2 + 1)
    else:
        hi = tl.minimum(first + BLOCK, outer_count) - 1 + outer_origin
        spans = RANGES(b, h, g, first + outer_origin, hi, env)
        runs = disjoint(spans, inner_origin, inner_count, INNER_BLOCK)
        full = count_full(runs)
        masked = count_masked(runs)

    for t in tl.range(0, full, num_stages=STAGES):
        if LISTED:
            tile = tl.load(full_list + t)
        else:
            tile = full_tile(runs, t)
        state, sums = visit(
            tile, outer, inners, rows, b, h, g, token, state, sums, env, M, N, False, OVER_ROWS, BLOCK, INNER_BLOCK,
            INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION, VISIBLE, STEP,
        )  # fmt: skip
    for t in tl.range(0, masked, num_stages=STAGES):
        if LISTED:
            tile = tl.load(masked_list + t)
        else:
            tile = masked_tile(runs, t)
        state, sums = visit(
            tile, outer, inners, rows, b, h, g, token, state, sums, env, M, N, True, OVER_ROWS, BLOCK, INNER_BLOCK,
            INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION, VISIBLE, STEP,
        )  # fmt: skip
    return state, sums


@triton.jit
def stream(
    outers,
    inners,
    outs,
    row_outs,
    lists,
    env,
    HEADS,
    H,
    M,
    N,
    GROUPED: tl.constexpr,
    OUTER_PER_MEMBER: tl.constexpr,
    CACHED: tl.constexpr,
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
    VALUES: tl.constexpr,
    DOTS: tl.constexpr,
    SUMS: tl.constexpr,
    STARTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    RANGES: tl.constexpr,
    ROWS: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
    FINISH: tl.constexpr,
    FINISH_ROWS: tl.constexpr,
):
    """Grid: a program for each outer tile, head and batch row. ``inners[:VALUES]`` feed the dot products.

    There are ``HEADS`` heads: those of the queries, or, where the sums are ``GROUPED``, sets of as many neighbours. The
    cache is taken to hold ``CACHED`` inner tokens of the heads that run together.
    """
    outer_count = N if OVER_ROWS else M
    tiles = tl.cdiv(outer_count, BLOCK)
    span = order.span_of(M if OVER_ROWS else N, CACHED)
    outer_tile, head, b = order.place(tl.program_id(0), tiles, HEADS, tl.num_programs(0) // tiles, span)
    if not OVER_ROWS:
        outer_tile = tiles - 1 - outer_tile
    h = head
    if GROUPED:
        h = head * (H // HEADS)
    g = GROUP(b, h, env)
    first = outer_tile * BLOCK
    at = tl.minimum(tl.arange(0, BLOCK), outer_count - 1 - first)
    token = (first + at)[:, None]
    row, i, j = positions(token, token, M, N, OVER_ROWS)
    rows = ROWS(b, h, g, row, i, j, env)
    state = ()
    for s in tl.static_range(len(STARTS)):
        state = state + (tl.full([BLOCK], STARTS[s], tl.float32),)
    sums = ()
    for s in tl.static_range(len(SUMS)):
        sums = sums + (tl.full([BLOCK, INNER_CHUNKS[SUMS[s][0]][3]], 0.0, tl.float32),)
    outer = load_chunks(outers, b, h, g, first, at, 0, len(OUTER_CHUNKS), OUTER_CHUNKS, OUTER_HEADS)
    if GROUPED:
        for member in range(H // HEADS):
            rows = ROWS(b, h + member, g, row, i, j, env)
            if OUTER_PER_MEMBER:
                outer = load_chunks(
                    outers, b, h + member, g, first, at, 0, len(OUTER_CHUNKS), OUTER_CHUNKS, OUTER_HEADS
                )  # fmt: skip
            state, sums = visit_all(
                outer_tile, outer, inners, rows, b, h + member, g, first, token, state, sums, lists, env, H, M, N,
                OVER_ROWS, BLOCK, INNER_BLOCK, STAGES, LISTED, LISTS_PER_BATCH, LISTS_PER_HEAD, INNER_HEADS,
                INNER_CHUNKS, VALUES, DOTS, SUMS, PRECISION, RANGES, VISIBLE, STEP,
            )  # fmt: skip
    else:
        state, sums = visit_all(
            outer_tile, outer, inners, rows, b, h, g, first, token, state, sums, lists, env, H, M, N, OVER_ROWS, BLOCK,
            INNER_BLOCK, STAGES, LISTED, LISTS_PER_BATCH, LISTS_PER_HEAD, INNER_HEADS, INNER_CHUNKS, VALUES, DOTS, SUMS,
            PRECISION, RANGES, VISIBLE, STEP,
        )  # fmt: skip

    at = tl.arange(0, BLOCK)
    exists = first + at < outer_count
    numbers = FINISH_ROWS(state, rows, b, h, g, row, i, env)
    for r in tl.static_range(len(row_outs)):
        line = row_outs[r] + (b.to(tl.int64) * HEADS + head) * outer_count + first + at
        tl.store(line[:, None], numbers[r], mask=exists[:, None])
    for c in tl.static_range(len(OUTPUTS)):
        lane = tl.arange(0, OUTPUTS[c][2])
        parts = ()
        for s in tl.static_range(tl.constexpr(OUTPUTS[c][5])):
            parts = parts + (sums[OUTPUTS[c][3] + s * OUTPUTS[c][4]],)
        vectors = FINISH(parts, state, rows, b, h, g, row, i, (OUTPUTS[c][0] + lane)[None, :], env, c)
        for o in tl.static_range(tl.constexpr(OUTPUTS[c][7])):
            pointer, stride_b, stride_h, stride_token = outs[OUTPUTS[c][6] + o]
            base = (
                pointer + b.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h + first.to(tl.int64) * stride_token
            )
            address = base + at[:, None] * stride_token + (OUTPUTS[c][0] + lane)[None, :]
            kept = exists[:, None] & (lane < OUTPUTS[c][1])[None, :]
            tl.store(address, vectors[o].to(pointer.dtype.element_ty), mask=kept)
