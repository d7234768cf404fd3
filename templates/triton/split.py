"""Few rows and many keys: parts of the keys are walked side by side, and what they found is combined.

``split`` walks one part. Where ``PACKED``, a tile holds the rows of all heads of a group, so that a key is loaded once
for all of them; slots then get ``h`` as ``[BLOCK, 1]``. ``combine`` merges the parts of each row, in order, so that
the result has the same bits every time, and writes what ``stream`` would. Slots besides those of ``stream``:

``MERGE(state, other, rows, b, h, g, row, i, env)``
    the state of two parts together, and the factors for what the one and the other have accumulated.
"""

import triton
import triton.language as tl

from attnc.templates.triton.segments import all_masked, count_full, count_masked, disjoint, full_tile, masked_tile
from attnc.templates.triton.stream import load_chunk, visit


@triton.jit
def split(
    outers,
    inners,
    part_outs,
    part_states,
    env,
    B,
    H,
    G,
    M,
    N,
    PARTS,
    BLOCK: tl.constexpr,
    INNER_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PACKED: tl.constexpr,
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
    RANGES: tl.constexpr,
    ROWS: tl.constexpr,
    VISIBLE: tl.constexpr,
    STEP: tl.constexpr,
):
    """Grid: a program for each tile of rows, part of the keys, head (or group of heads) and batch row.

    ``part_states[n]`` is ``[PARTS, B, H, M]``, ``part_outs`` are ``[PARTS, B, H, M, width]``, both f32. Tiles without
    a mask are told from others only with ``FULL_TILES``.
    """
    heads = 1
    if PACKED:
        heads = H // G
    tiles = tl.cdiv(M * heads, BLOCK)
    program = tl.program_id(0)
    part = program // tiles % PARTS
    first = program % tiles * BLOCK
    within = tl.arange(0, BLOCK)
    packed = tl.minimum(first + within, M * heads - 1)
    at = packed // heads
    token = at[:, None]
    if PACKED:
        g = program // tiles // PARTS % G
        b = program // tiles // PARTS // G
        h = g * heads + (packed % heads)[:, None]
        first_head = g * heads
    else:
        h = program // tiles // PARTS % H
        b = program // tiles // PARTS // H
        g = GROUP(b, h, env)
        first_head = h
    i = token + (N - M)
    rows = ROWS(b, h, g, token, i, token, env)

    outer = ()
    for c in tl.static_range(len(OUTER_CHUNKS)):
        pointer, stride_b, stride_head, stride_token = outers[OUTER_CHUNKS[c][0]]
        base = pointer + b.to(tl.int64) * stride_b
        if OUTER_HEADS[OUTER_CHUNKS[c][0]]:
            base += h.to(tl.int64) * stride_head
        else:
            base += g.to(tl.int64) * stride_head
        outer = outer + (load_chunk(base, at.to(tl.int64), stride_token, OUTER_CHUNKS, c),)
    state = ()
    for s in tl.static_range(len(STARTS)):
        state = state + (tl.full([BLOCK], STARTS[s], tl.float32),)
    sums = ()
    for s in tl.static_range(len(SUMS)):
        sums = sums + (tl.full([BLOCK, INNER_CHUNKS[SUMS[s][0]][3]], 0.0, tl.float32),)

    last = tl.minimum(first + BLOCK, M * heads) - 1
    spans = RANGES(b, first_head, g, first // heads + (N - M), last // heads + (N - M), env)
    runs = disjoint(spans, 0, N, INNER_BLOCK)
    if not FULL_TILES:
        runs = all_masked(runs)
    full = count_full(runs)
    masked = count_masked(runs)
    if FULL_TILES:
        for t in tl.range(full * part // PARTS, full * (part + 1) // PARTS, num_stages=STAGES):
            state, sums = visit(
                full_tile(runs, t), outer, inners, rows, b, h, g, token, state, sums, env, M, N, False, False, BLOCK,
                INNER_BLOCK, INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION, VISIBLE, STEP,
            )  # fmt: skip
    for t in tl.range(masked * part // PARTS, masked * (part + 1) // PARTS, num_stages=STAGES):
        state, sums = visit(
            masked_tile(runs, t), outer, inners, rows, b, h, g, token, state, sums, env, M, N, True, False, BLOCK,
            INNER_BLOCK, INNER_CHUNKS, VALUES, DOTS, SUMS, INNER_HEADS, PRECISION, VISIBLE, STEP,
        )  # fmt: skip

    exists = (first + within < M * heads)[:, None]
    line = ((part.to(tl.int64) * B + b) * H + h) * M + token
    for s in tl.static_range(len(STARTS)):
        tl.store(part_states[s] + line, state[s][:, None], mask=exists)
    for c in tl.static_range(len(OUTPUTS)):
        lane = tl.arange(0, OUTPUTS[c][2])[None, :]
        for s in tl.static_range(tl.constexpr(OUTPUTS[c][5])):
            pointer, width = part_outs[s]
            address = pointer + line * width + OUTPUTS[c][0] + lane
            tl.store(address, sums[OUTPUTS[c][3] + s * OUTPUTS[c][4]], mask=exists & (lane < OUTPUTS[c][1]))


@triton.jit
def combine(
    part_outs,
    part_states,
    outs,
    row_outs,
    env,
    B,
    H,
    M,
    N,
    PARTS,
    BLOCK: tl.constexpr,
    STATES: tl.constexpr,
    SHIFTED: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    MERGE: tl.constexpr,
    FINISH: tl.constexpr,
    FINISH_ROWS: tl.constexpr,
):
    """Grid: a program for ``BLOCK`` rows of any heads and batch rows. ``SHIFTED`` says of each sum which factor of
    ``MERGE`` it takes, or -1; ``STATES`` is the number of statistics."""
    count = B * H * M
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = (at < count)[:, None]
    line = tl.minimum(at, count - 1)[:, None]
    row = line % M
    h = line // M % H
    b = line // M // H
    g = GROUP(b, h, env)
    i = row + (N - M)
    rows = ROWS(b, h, g, row, i, row, env)
    state = load_states(part_states, line, STATES)
    sums = load_sums(part_outs, line.to(tl.int64), OUTPUTS)
    place = line.to(tl.int64)
    for _ in tl.range(1, PARTS):
        place += count
        other = load_states(part_states, place, STATES)
        more = load_sums(part_outs, place, OUTPUTS)
        state, own, others = MERGE(state, other, rows, b, h, g, row, i, env)
        sums = merge_sums(sums, more, own, others, SHIFTED, OUTPUTS)
    numbers = FINISH_ROWS(state, rows, b, h, g, row, i, env)
    for r in tl.static_range(len(row_outs)):
        tl.store(row_outs[r] + line, numbers[r], mask=exists)
    for c in tl.static_range(len(OUTPUTS)):
        lane = OUTPUTS[c][0] + tl.arange(0, OUTPUTS[c][2])[None, :]
        parts = ()
        for s in tl.static_range(tl.constexpr(OUTPUTS[c][5])):
            parts = parts + (sums[c * tl.constexpr(OUTPUTS[c][5]) + s],)
        vectors = FINISH(parts, state, rows, b, h, g, row, i, lane, env, c)
        kept = exists & (lane < OUTPUTS[c][0] + OUTPUTS[c][1])
        for o in tl.static_range(tl.constexpr(OUTPUTS[c][7])):
            pointer, stride_b, stride_h, stride_token = outs[OUTPUTS[c][6] + o]
            address = pointer + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h
            address += row.to(tl.int64) * stride_token + lane
            tl.store(address, vectors[o].to(pointer.dtype.element_ty), mask=kept)


@triton.jit
def load_states(part_states, line, STATES: tl.constexpr):
    """The statistics of a part, ``[BLOCK]`` each."""
    states = ()
    for s in tl.static_range(STATES):
        states = states + (tl.max(tl.load(part_states[s] + line), 1),)
    return states


@triton.jit
def load_sums(part_outs, line, OUTPUTS: tl.constexpr):
    """The accumulators of a part, chunk by chunk."""
    sums = ()
    for c in tl.static_range(len(OUTPUTS)):
        lane = tl.arange(0, OUTPUTS[c][2])[None, :]
        for s in tl.static_range(tl.constexpr(OUTPUTS[c][5])):
            pointer, width = part_outs[s]
            address = pointer + line * width + OUTPUTS[c][0] + lane
            sums = sums + (tl.load(address, mask=(lane < OUTPUTS[c][1]) & (line >= 0), other=0.0),)
    return sums


@triton.jit
def merge_sums(sums, more, own, others, SHIFTED: tl.constexpr, OUTPUTS: tl.constexpr):
    merged = ()
    for c in tl.static_range(len(OUTPUTS)):
        for s in tl.static_range(len(SHIFTED)):
            mine = sums[c * len(SHIFTED) + s]
            theirs = more[c * len(SHIFTED) + s]
            if SHIFTED[s] >= 0:
                mine = mine * own[SHIFTED[s]][:, None]
                theirs = theirs * others[SHIFTED[s]][:, None]
            merged = merged + (mine + theirs,)
    return merged
