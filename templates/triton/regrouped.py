"""Attention of queries to the blocks of keys in their lists, after ``entries`` has sorted them.

``regrouped`` holds a tile of entries of one block and walks over its keys; each entry gets statistics and accumulators
of its own, which ``merge`` puts together query by query. ``regrouped_rows`` holds keys of a block and walks over the
rows that have it. Slots are those of ``stream`` and ``combine``, with the mask as it is within a block, and

``FULL(b, h, g, i_lo, i_hi, j_lo, j_hi, env)``
    whether every pair of a tile is visible.

``PARTS`` lists the accumulator chunks in order: ``(tensor, lo, valid, padded, factor of MERGE or -1)``.
"""

import triton
import triton.language as tl

from attnc.templates.triton.stream import load_chunk, load_chunks, visit_tokens


@triton.jit
def regrouped(
    outers,
    inners,
    part_outs,
    part_states,
    order,
    tasks,
    env,
    FIRST,
    H,
    M,
    N,
    TASKS,
    KEYS: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    OVER_ROWS: tl.constexpr,
    OUTER_HEADS: tl.constexpr,
    INNER_HEADS: tl.constexpr,
    OUTER_CHUNKS: tl.constexpr,
    INNER_CHUNKS: tl.constexpr,
    VALUES: tl.constexpr,
    DOTS: tl.constexpr,
    SUMS: tl.constexpr,
    STARTS: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    FULL: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
):
    """Grid: a program for each task and line, from the line ``FIRST`` on.

    A task is up to ``SPAN`` tiles of entries. Keys and values stay where they are for all of them if they are one tile.
    ``part_states[n]`` is ``[lines, M * MOST]`` in f32, ``part_outs`` are ``[lines, M * MOST, width]``.
    """
    program = tl.program_id(0)
    local = (program // TASKS).to(tl.int64)
    line = local + FIRST
    task = tasks + (line * TASKS + program % TASKS) * 3
    key_block = tl.load(task) - 1
    if key_block < 0:
        return
    begin = tl.load(task + 1)
    end = tl.load(task + 2)
    h = (line % H).to(tl.int32)
    b = (line // H).to(tl.int32)
    g = GROUP(b, h, env)
    order += line * M * MOST
    where = local * M * MOST
    first = key_block * KEYS
    size = tl.minimum(KEYS, N - first)
    held = ()
    if KEYS <= INNER_BLOCK:
        at = tl.minimum(tl.arange(0, INNER_BLOCK), size - 1)
        held = load_chunks(inners, b, h, g, first, at, 0, len(INNER_CHUNKS), INNER_CHUNKS, INNER_HEADS)

    count = tl.cdiv(end - begin, BLOCK)
    looked = tl.arange(0, SPAN)
    there = looked < count
    lo = tl.load(order + begin + looked * BLOCK, mask=there, other=0) // MOST + (N - M)
    hi = tl.load(order + end - 1) // MOST + (N - M)
    full = FULL(b, h, g, lo, hi, first, first + size - 1, env) & there & (size % INNER_BLOCK == 0)
    masked = tl.min(tl.where(full, looked, count), 0)
    for t in tl.range(0, masked, num_stages=1):
        attend(
            begin + t * BLOCK, end, where, held, outers, inners, part_outs, part_states, order, env, b, h, g, first,
            size, M, N, True, KEYS, MOST, BLOCK, INNER_BLOCK, STAGES, OUTER_HEADS, INNER_HEADS, OUTER_CHUNKS,
            INNER_CHUNKS, VALUES, DOTS, SUMS, STARTS, PARTS, PRECISION, ROWS, VISIBLE, STEP,
        )  # fmt: skip
    for t in tl.range(masked, count, num_stages=STAGES):
        attend(
            begin + t * BLOCK, end, where, held, outers, inners, part_outs, part_states, order, env, b, h, g, first,
            size, M, N, False, KEYS, MOST, BLOCK, INNER_BLOCK, STAGES, OUTER_HEADS, INNER_HEADS, OUTER_CHUNKS,
            INNER_CHUNKS, VALUES, DOTS, SUMS, STARTS, PARTS, PRECISION, ROWS, VISIBLE, STEP,
        )  # fmt: skip


@triton.jit
def attend(
    begin,
    end,
    where,
    held,
    outers,
    inners,
    part_outs,
    part_states,
    order,
    env,
    b,
    h,
    g,
    first,
    size,
    M,
    N,
    MASKED: tl.constexpr,
    KEYS: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    OUTER_HEADS: tl.constexpr,
    INNER_HEADS: tl.constexpr,
    OUTER_CHUNKS: tl.constexpr,
    INNER_CHUNKS: tl.constexpr,
    VALUES: tl.constexpr,
    DOTS: tl.constexpr,
    SUMS: tl.constexpr,
    STARTS: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
):
    """One tile of entries: those of ``order`` from ``begin`` on, before ``end``."""
    within = begin + tl.arange(0, BLOCK)
    entry = tl.load(order + tl.minimum(within, end - 1))
    row = entry // MOST
    token = row[:, None]
    rows = ROWS(b, h, g, token, token + (N - M), token, env)
    outer = ()
    for c in tl.static_range(len(OUTER_CHUNKS)):
        pointer, stride_b, stride_head, stride_token = outers[OUTER_CHUNKS[c][0]]
        head = h if OUTER_HEADS[OUTER_CHUNKS[c][0]] else g
        base = pointer + b.to(tl.int64) * stride_b + head.to(tl.int64) * stride_head
        outer = outer + (load_chunk(base, row.to(tl.int64), stride_token, OUTER_CHUNKS, c),)
    state = ()
    for s in tl.static_range(len(STARTS)):
        state = state + (tl.full([BLOCK], STARTS[s], tl.float32),)
    sums = ()
    for s in tl.static_range(len(SUMS)):
        sums = sums + (tl.full([BLOCK, INNER_CHUNKS[SUMS[s][0]][3]], 0.0, tl.float32),)
    if KEYS <= INNER_BLOCK:
        at = tl.arange(0, INNER_BLOCK)
        inside = (at < size)[None, :]
        at = tl.minimum(at, size - 1)
        state, sums = visit_tokens(
            first, at, at, inside, held, outer, inners, rows, b, h, g, token, state, sums, env, M, N, MASKED, False,
            BLOCK, INNER_BLOCK, INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION, VISIBLE, STEP,
        )  # fmt: skip
    else:
        for t in tl.range(0, tl.cdiv(size, INNER_BLOCK), num_stages=STAGES):
            at = tl.arange(0, INNER_BLOCK)
            left = size - t * INNER_BLOCK
            inside = (at < left)[None, :]
            if MASKED:
                at = tl.minimum(at, left - 1)
            state, sums = visit_tokens(
                first + t * INNER_BLOCK, at, at, inside, (), outer, inners, rows, b, h, g, token, state, sums, env, M,
                N, MASKED, False, BLOCK, INNER_BLOCK, INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION,
                VISIBLE, STEP,
            )  # fmt: skip
    exists = (within < end)[:, None]
    place = (where + entry)[:, None]
    for s in tl.static_range(len(STARTS)):
        tl.store(part_states[s] + place, state[s][:, None], mask=exists)
    for p in tl.static_range(len(PARTS)):
        lane = tl.arange(0, PARTS[p][3])[None, :]
        pointer, width = part_outs[PARTS[p][0]]
        address = pointer + place * width + PARTS[p][1] + lane
        tl.store(address, sums[p].to(pointer.dtype.element_ty), mask=exists & (lane < PARTS[p][2]))


@triton.jit
def merge(
    part_outs,
    part_states,
    clean,
    outs,
    row_outs,
    env,
    FIRST,
    LINES,
    H,
    M,
    N,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    STARTS: tl.constexpr,
    PARTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    MERGE: tl.constexpr,
    FINISH: tl.constexpr,
    FINISH_ROWS: tl.constexpr,
):
    """Grid: a program for ``BLOCK`` rows of any of the lines. The parts of a row are taken in the order of its list."""
    count = LINES * M
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = (at < count)[:, None]
    local = tl.minimum(at, count - 1)[:, None]
    row = local % M
    line = FIRST + local // M
    h = line % H
    b = line // H
    g = GROUP(b, h, env)
    rows = ROWS(b, h, g, row, row + (N - M), row, env)
    place = local.to(tl.int64) * MOST
    clean += FIRST.to(tl.int64) * M * MOST
    state = ()
    for s in tl.static_range(len(STARTS)):
        state = state + (tl.full([BLOCK], STARTS[s], tl.float32),)
    sums = ()
    for p in tl.static_range(len(PARTS)):
        sums = sums + (tl.full([BLOCK, PARTS[p][3]], 0.0, tl.float32),)
    for n in tl.range(0, MOST, num_stages=STAGES):
        given = tl.load(clean + place + n) >= 0
        other = ()
        for s in tl.static_range(len(STARTS)):
            found = tl.load(part_states[s] + place + n, mask=given, other=STARTS[s])
            other = other + (tl.max(found, 1),)
        state, own, others = MERGE(state, other, rows, b, h, g, row, row + (N - M), env)
        merged = ()
        for p in tl.static_range(len(PARTS)):
            lane = tl.arange(0, PARTS[p][3])[None, :]
            pointer, width = part_outs[PARTS[p][0]]
            address = pointer + (place + n) * width + PARTS[p][1] + lane
            more = tl.load(address, mask=given & (lane < PARTS[p][2]), other=0.0).to(tl.float32)
            total = sums[p]
            if PARTS[p][4] >= 0:
                total = total * own[PARTS[p][4]][:, None]
                more = more * others[PARTS[p][4]][:, None]
            merged = merged + (total + more,)
        sums = merged
    numbers = FINISH_ROWS(state, rows, b, h, g, row, row + (N - M), env)
    written = FIRST.to(tl.int64) * M + local
    for r in tl.static_range(len(row_outs)):
        tl.store(row_outs[r] + written, numbers[r], mask=exists)
    for c in tl.static_range(len(OUTPUTS)):
        lane = OUTPUTS[c][0] + tl.arange(0, OUTPUTS[c][2])[None, :]
        parts = ()
        for s in tl.static_range(tl.constexpr(OUTPUTS[c][5])):
            parts = parts + (sums[OUTPUTS[c][3] + s * OUTPUTS[c][4]],)
        vectors = FINISH(parts, state, rows, b, h, g, row, row + (N - M), lane, env, c)
        kept = exists & (lane < OUTPUTS[c][0] + OUTPUTS[c][1])
        for o in tl.static_range(tl.constexpr(OUTPUTS[c][7])):
            pointer, stride_b, stride_h, stride_token = outs[OUTPUTS[c][6] + o]
            address = pointer + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h
            address += row.to(tl.int64) * stride_token + lane
            tl.store(address, vectors[o].to(pointer.dtype.element_ty), mask=kept)


@triton.jit
def regrouped_rows(
    outers,
    inners,
    outs,
    row_outs,
    order,
    starts,
    env,
    H,
    M,
    N,
    BLOCKS,
    KEYS: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    LOOKED: tl.constexpr,
    STAGES: tl.constexpr,
    OVER_ROWS: tl.constexpr,
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
    FULL: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
    FINISH: tl.constexpr,
    FINISH_ROWS: tl.constexpr,
):
    """Grid: a program for each tile of keys of each block, head and batch row.

    Rows come in order, so the pairs that a mask leaves out are often those of the first tiles, of which ``LOOKED`` are
    asked whether everything from there on is visible.
    """
    apart: tl.constexpr = (KEYS + BLOCK - 1) // BLOCK
    tiles = BLOCKS * apart
    program = tl.program_id(0)
    key_block = program % tiles // apart
    line = program // tiles
    h = line % H
    b = line // H
    first = key_block * KEYS + program % apart * BLOCK
    last = tl.minimum(key_block * KEYS + KEYS, N)
    if first >= last:
        return
    g = GROUP(b, h, env)
    at = tl.minimum(tl.arange(0, BLOCK), last - 1 - first)
    token = (first + at)[:, None]
    rows = ROWS(b, h, g, token, token + (N - M), token, env)
    outer = load_chunks(outers, b, h, g, first, at, 0, len(OUTER_CHUNKS), OUTER_CHUNKS, OUTER_HEADS)
    state = ()
    for s in tl.static_range(len(STARTS)):
        state = state + (tl.full([BLOCK], STARTS[s], tl.float32),)
    sums = ()
    for s in tl.static_range(len(SUMS)):
        sums = sums + (tl.full([BLOCK, INNER_CHUNKS[SUMS[s][0]][3]], 0.0, tl.float32),)

    starts += line.to(tl.int64) * (BLOCKS + 1) + key_block
    begin = tl.load(starts)
    end = tl.load(starts + 1)
    order += line.to(tl.int64) * M * MOST
    count = tl.cdiv(end - begin, INNER_BLOCK)
    whole = (end - begin) // INNER_BLOCK
    looked = tl.arange(0, LOOKED)
    there = looked < count
    lo = tl.load(order + begin + looked * INNER_BLOCK, mask=there, other=0) // MOST + (N - M)
    hi = tl.load(order + end - 1, mask=end > begin, other=0) // MOST + (N - M)
    full = FULL(b, h, g, lo, hi, first, tl.minimum(first + BLOCK, last) - 1, env) & there
    plain = tl.minimum(tl.min(tl.where(full, looked, count), 0), whole)
    for t in tl.range(plain, whole, num_stages=STAGES):
        entry = tl.load(order + begin + t * INNER_BLOCK + tl.arange(0, INNER_BLOCK))
        row = entry // MOST
        state, sums = visit_tokens(
            first * 0, row, row.to(tl.int64), (row >= 0)[None, :], (), outer, inners, rows, b, h, g, token, state, sums,
            env, M, N, False, True, BLOCK, INNER_BLOCK, INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION,
            VISIBLE, STEP,
        )  # fmt: skip
    for s in tl.range(0, plain + count - whole, num_stages=1):
        t = tl.where(s < plain, s, whole + s - plain)
        within = begin + t * INNER_BLOCK + tl.arange(0, INNER_BLOCK)
        row = tl.load(order + tl.minimum(within, end - 1)) // MOST
        state, sums = visit_tokens(
            first * 0, row, row.to(tl.int64), (within < end)[None, :], (), outer, inners, rows, b, h, g, token, state,
            sums, env, M, N, True, True, BLOCK, INNER_BLOCK, INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION,
            VISIBLE, STEP,
        )  # fmt: skip

    at = tl.arange(0, BLOCK)
    exists = first + at < last
    numbers = FINISH_ROWS(state, rows, b, h, g, token, token + (N - M), env)
    for r in tl.static_range(len(row_outs)):
        address = row_outs[r] + (b.to(tl.int64) * H + h) * N + first + at
        tl.store(address[:, None], numbers[r], mask=exists[:, None])
    for c in tl.static_range(len(OUTPUTS)):
        lane = tl.arange(0, OUTPUTS[c][2])
        parts = ()
        for s in tl.static_range(tl.constexpr(OUTPUTS[c][5])):
            parts = parts + (sums[OUTPUTS[c][3] + s * OUTPUTS[c][4]],)
        vectors = FINISH(
            parts, state, rows, b, h, g, token, token + (N - M), (OUTPUTS[c][0] + lane)[None, :], env, c
        )  # fmt: skip
        for o in tl.static_range(tl.constexpr(OUTPUTS[c][7])):
            pointer, stride_b, stride_h, stride_token = outs[OUTPUTS[c][6] + o]
            base = pointer + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h + first.to(tl.int64) * stride_token
            address = base + at[:, None] * stride_token + (OUTPUTS[c][0] + lane)[None, :]
            kept = exists[:, None] & (lane < OUTPUTS[c][1])[None, :]
            tl.store(address, vectors[o].to(pointer.dtype.element_ty), mask=kept)
