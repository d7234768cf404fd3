"""Walks over keys that are given by number: each row has a list of its own, and tiles are gathered.

A tile of the outer axis holds the heads that share a list, at one row: with ``PACKED`` those of a group, else one head
(repeated, as tensor cores want 16). ``gather`` walks over the keys of the list, in its order, and writes what
``stream`` would. ``spread`` is for sums over the rows that see a key: a program has some keys of one row's list, sums
over the heads, and adds to the totals of those keys **in any order**: the last bits differ from call to call.

``lists`` holds ``numbers [B, heads, M, most]`` with its strides but the last, ``counts [B, heads, M]`` with its
strides, and ``most``; ``LIST_HEADS`` says whether ``heads`` is 1 (0), ``G`` (1) or ``H`` (2). A number that is no key
is read as the nearest one, never outside of memory. Slots and tables are those of ``stream``; slots get ``h`` as
``[BLOCK, 1]``, or ``[1, INNER_BLOCK]`` in ``spread``.
"""

import triton
import triton.language as tl

from attnc.templates.triton.stream import WIDE_PRECISION, add_product, load_chunk, load_chunks, multiply


@triton.jit
def list_of(lists, b, h, g, row, LIST_HEADS: tl.constexpr):
    """Where the list of a row begins, and how long it is."""
    numbers, number_b, number_h, number_row, counts, count_b, count_h, count_row, most = lists
    head = b * 0
    if LIST_HEADS == 1:
        head = g
    if LIST_HEADS == 2:
        head = h
    place = b.to(tl.int64), head.to(tl.int64), row.to(tl.int64)
    count = tl.load(counts + place[0] * count_b + place[1] * count_h + place[2] * count_row)
    first = numbers + place[0] * number_b + place[1] * number_h + place[2] * number_row
    return first, tl.minimum(count.to(tl.int32), most)


@triton.jit
def keys_at(numbers, first, count, N, SIZE: tl.constexpr):
    """The keys at the places ``first ..`` of a list, and which of these there are: ``[SIZE]`` both."""
    place = first + tl.arange(0, SIZE)
    there = place < count
    key = tl.load(numbers + tl.minimum(place, count - 1)).to(tl.int32)
    return tl.minimum(tl.maximum(key, 0), N - 1), there


@triton.jit
def whose(program, tiles, M, H, G, env, PACKED: tl.constexpr, GROUP: tl.constexpr):
    """``b, h, g, row`` of a program; ``h`` is the first head."""
    row = program // tiles % M
    rest = program // tiles // M
    if PACKED:
        g = rest % G
        b = rest // G
        h = g * (H // G)
    else:
        h = rest % H
        b = rest // H
        g = GROUP(b, h, env)
    return b, h, g, row


@triton.jit
def visit_listed(
    key,
    there,
    outer,
    inners,
    rows,
    b,
    h,
    g,
    token,
    i,
    state,
    sums,
    env,
    MASKED: tl.constexpr,
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
    """The state and the sums after the keys of one tile."""
    j = key[None, :]
    at = key.to(tl.int64)
    first_head = tl.min(tl.min(h, 1), 0)
    loaded = load_chunks(inners, b, first_head, g, g * 0, at, 0, VALUES, INNER_CHUNKS, INNER_HEADS)
    dots = multiply(outer, loaded, BLOCK, INNER_BLOCK, DOTS, PRECISION)
    visible = there[None, :]
    if MASKED:
        visible = VISIBLE(visible, dots, rows, b, h, g, token, i, j, env)
    state, factors, weights = STEP(dots, visible, rows, b, h, g, token, i, j, state, env, MASKED)
    loaded = loaded + load_chunks(
        inners, b, first_head, g, g * 0, at, VALUES, len(INNER_CHUNKS), INNER_CHUNKS, INNER_HEADS
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
def gather(
    outers,
    inners,
    outs,
    row_outs,
    lists,
    env,
    H,
    G,
    M,
    N,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PACKED: tl.constexpr,
    LIST_HEADS: tl.constexpr,
    FULL_TILES: tl.constexpr,
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
    ROWS: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
    FINISH: tl.constexpr,
    FINISH_ROWS: tl.constexpr,
):
    """Grid: a program for each tile of heads, row, group (or head) and batch row.

    With ``FULL_TILES`` every listed key is visible, so that only the last tile needs a mask.
    """
    heads = 1
    if PACKED:
        heads = H // G
    tiles = tl.cdiv(heads, BLOCK)
    program = tl.program_id(0)
    b, first_head, g, row = whose(program, tiles, M, H, G, env, PACKED, GROUP)
    within = program % tiles * BLOCK + tl.arange(0, BLOCK)
    exists = (within < heads)[:, None]
    h = first_head + tl.minimum(within, heads - 1)[:, None]
    token = row + h * 0
    i = token + (N - M)
    rows = ROWS(b, h, g, token, i, token, env)
    outer = ()
    for c in tl.static_range(len(OUTER_CHUNKS)):
        pointer, stride_b, stride_head, stride_token = outers[OUTER_CHUNKS[c][0]]
        base = pointer + b.to(tl.int64) * stride_b + row.to(tl.int64) * stride_token
        if OUTER_HEADS[OUTER_CHUNKS[c][0]]:
            base += h.to(tl.int64) * stride_head
        else:
            base += (g + h * 0).to(tl.int64) * stride_head
        outer = outer + (load_chunk(base, within * 0, stride_token, OUTER_CHUNKS, c),)
    state = ()
    for s in tl.static_range(len(STARTS)):
        state = state + (tl.full([BLOCK], STARTS[s], tl.float32),)
    sums = ()
    for s in tl.static_range(len(SUMS)):
        sums = sums + (tl.full([BLOCK, INNER_CHUNKS[SUMS[s][0]][3]], 0.0, tl.float32),)

    numbers, count = list_of(lists, b, first_head, g, row, LIST_HEADS)
    full = 0
    if FULL_TILES:
        full = count // INNER_BLOCK
        for t in tl.range(0, full, num_stages=STAGES):
            key, there = keys_at(numbers, t * INNER_BLOCK, count, N, INNER_BLOCK)
            state, sums = visit_listed(
                key, there, outer, inners, rows, b, h, g, token, i, state, sums, env, False, BLOCK, INNER_BLOCK,
                INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION, VISIBLE, STEP,
            )  # fmt: skip
    for t in tl.range(full, tl.cdiv(count, INNER_BLOCK), num_stages=STAGES):
        key, there = keys_at(numbers, t * INNER_BLOCK, count, N, INNER_BLOCK)
        state, sums = visit_listed(
            key, there, outer, inners, rows, b, h, g, token, i, state, sums, env, True, BLOCK, INNER_BLOCK,
            INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION, VISIBLE, STEP,
        )  # fmt: skip

    numbers_out = FINISH_ROWS(state, rows, b, h, g, token, i, env)
    for r in tl.static_range(len(row_outs)):
        line = row_outs[r] + (b.to(tl.int64) * H + h) * M + row
        tl.store(line, numbers_out[r], mask=exists)
    for c in tl.static_range(len(OUTPUTS)):
        lane = tl.arange(0, OUTPUTS[c][2])[None, :]
        parts = ()
        for s in tl.static_range(tl.constexpr(OUTPUTS[c][5])):
            parts = parts + (sums[OUTPUTS[c][3] + s * OUTPUTS[c][4]],)
        vectors = FINISH(parts, state, rows, b, h, g, token, i, OUTPUTS[c][0] + lane, env, c)
        for o in tl.static_range(tl.constexpr(OUTPUTS[c][7])):
            pointer, stride_b, stride_h, stride_token = outs[OUTPUTS[c][6] + o]
            base = pointer + b.to(tl.int64) * stride_b + row.to(tl.int64) * stride_token
            address = base + h.to(tl.int64) * stride_h + OUTPUTS[c][0] + lane
            tl.store(address, vectors[o].to(pointer.dtype.element_ty), mask=exists & (lane < OUTPUTS[c][1]))


@triton.jit
def spread(
    outers,
    inners,
    outs,
    row_outs,
    lists,
    env,
    H,
    G,
    M,
    N,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PACKED: tl.constexpr,
    LIST_HEADS: tl.constexpr,
    FULL_TILES: tl.constexpr,
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
    ROWS: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
    FINISH: tl.constexpr,
    FINISH_ROWS: tl.constexpr,
):
    """Grid: a program for each ``BLOCK`` places of a list, row, group (or head) and batch row.

    ``outs`` are ``[B, G, N, width]`` and ``row_outs`` ``[B, G, N]``, float32, and hold zeros before. The heads of a
    group come in tiles of ``INNER_BLOCK``.
    """
    heads = 1
    if PACKED:
        heads = H // G
    tiles = tl.cdiv(lists[8], BLOCK)
    program = tl.program_id(0)
    b, first_head, g, row = whose(program, tiles, M, H, G, env, PACKED, GROUP)
    numbers, count = list_of(lists, b, first_head, g, row, LIST_HEADS)
    first = program % tiles * BLOCK
    if first < count:
        key, there = keys_at(numbers, first, count, N, BLOCK)
        j = key[:, None]
        at = key.to(tl.int64)
        outer = load_chunks(outers, b, first_head, g, g * 0, at, 0, len(OUTER_CHUNKS), OUTER_CHUNKS, OUTER_HEADS)
        state = ()
        for s in tl.static_range(len(STARTS)):
            state = state + (tl.full([BLOCK], STARTS[s], tl.float32),)
        sums = ()
        for s in tl.static_range(len(SUMS)):
            sums = sums + (tl.full([BLOCK, INNER_CHUNKS[SUMS[s][0]][3]], 0.0, tl.float32),)
        for t in tl.range(0, tl.cdiv(heads, INNER_BLOCK), num_stages=STAGES):
            within = t * INNER_BLOCK + tl.arange(0, INNER_BLOCK)
            head = first_head + tl.minimum(within, heads - 1)
            h = head[None, :]
            token = row + h * 0
            i = token + (N - M)
            rows = ROWS(b, h, g, token, i, j, env)
            loaded = ()
            for c in tl.static_range(len(INNER_CHUNKS)):
                pointer, stride_b, stride_head, stride_token = inners[INNER_CHUNKS[c][0]]
                base = pointer + b.to(tl.int64) * stride_b + row.to(tl.int64) * stride_token
                if INNER_HEADS[INNER_CHUNKS[c][0]]:
                    base += head[:, None].to(tl.int64) * stride_head
                else:
                    base += (g + head * 0)[:, None].to(tl.int64) * stride_head
                loaded = loaded + (load_chunk(base, head * 0, stride_token, INNER_CHUNKS, c),)
            dots = multiply(outer, loaded, BLOCK, INNER_BLOCK, DOTS, PRECISION)
            visible = there[:, None] & (within < heads)[None, :]
            if not FULL_TILES:
                visible = VISIBLE(visible, dots, rows, b, h, g, token, i, j, env)
            state, _, weights = STEP(dots, visible, rows, b, h, g, token, i, j, state, env, True)
            new_sums = ()
            for s in tl.static_range(len(SUMS)):
                value = loaded[SUMS[s][0]]
                weight = weights[SUMS[s][1]]
                if SUMS[s][3]:
                    total = add_product(sums[s], weight, value.to(tl.float32), WIDE_PRECISION)
                else:
                    total = add_product(sums[s], weight.to(value.dtype), value, PRECISION)
                new_sums = new_sums + (total,)
            sums = new_sums
        totals = FINISH_ROWS(state, (), b, j, g, j, j, env)
        for r in tl.static_range(len(row_outs)):
            place = row_outs[r] + (b.to(tl.int64) * G + g) * N + j
            tl.atomic_add(place, totals[r], mask=there[:, None], sem="relaxed")
        for c in tl.static_range(len(OUTPUTS)):
            lane = tl.arange(0, OUTPUTS[c][2])[None, :]
            (total,) = FINISH((sums[OUTPUTS[c][3]],), state, (), b, j, g, j, j, OUTPUTS[c][0] + lane, env, c)
            pointer, stride_b, stride_head, stride_token = outs[OUTPUTS[c][6]]
            base = pointer + b.to(tl.int64) * stride_b + g.to(tl.int64) * stride_head
            address = base + at[:, None] * stride_token + OUTPUTS[c][0] + lane
            tl.atomic_add(address, total, mask=there[:, None] & (lane < OUTPUTS[c][1]), sem="relaxed")
