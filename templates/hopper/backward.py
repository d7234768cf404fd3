"""Walks of a backward on Hopper: sums over the inner tokens of pair terms times vectors, by warpgroup products.

A program takes 128 outer tokens. Two warpgroups of consumers have 64 each; a warp of a third, the producer, brings
tiles of inner tokens to shared memory with TMA, and numbers of inner tokens by loads.

A step multiplies the *early* dot products, computes from them the early weights and what later weights keep of them,
then multiplies the *late* dot products (those with the cotangent) while the early weights are summed. No product is in
flight over the loop's back edge: ptxas would run all of them one by one.

Slots beside those of the portable ``stream`` (``GROUP``, ``RANGES``, ``ROWS``, ``VISIBLE``):

- ``LINES(b, h, g, row, i, j, env)``: what is read once an inner token, ``[tokens]`` each;
- ``EARLY(dots, rows, lines, b, h, g, row, i, j, env)``: early weights, then what ``LATE`` is given as ``kept``;
- ``LATE(dots, kept, rows, lines, b, h, g, row, i, j, env)``: late weights.

Weights of pairs that are not visible are set to 0 here, in the tiles that have such pairs.
"""

from attnc.templates.hopper.backward_form import GROUPS, OUTER_BLOCK, ROWS_OF_GROUP, Form, opaque, sum_layout
from attnc.templates.hopper.backward_products import (
    add_cross,
    add_numbers,
    add_sums,
    arrived,
    await_chunks,
    cross,
    hidden,
    multiply,
    read_lines,
    release,
)
from attnc.templates.hopper.backward_tiles import place, produce, read_number
from attnc.templates.hopper.gluon import (
    copies_out_done,
    fence_async_shared,
    gl,
    jit,
    mbarrier,
)
from attnc.templates.triton.stream import positions


@jit
def visibility(form, first, inner_first, token, dots, rows, line_memory, slot, b, h, g, env, M, N):
    inner_count = M if form.OVER_ROWS else N
    raw = opaque(gl.arange(0, form.INNER_BLOCK, gl.SliceLayout(0, form.PAIRS)))
    inside = gl.expand_dims(inner_first + raw < inner_count, 0)
    if len(form.CROSS) > 0:
        outer = first + gl.arange(0, ROWS_OF_GROUP, gl.SliceLayout(1, form.PAIRS))
        inside = inside & gl.expand_dims(outer < (N if form.OVER_ROWS else M), 1)
    inner = gl.expand_dims(inner_first + gl.minimum(raw, inner_count - 1 - inner_first), 0)
    row, i, j = positions(token, inner, M, N, form.OVER_ROWS)
    lines = read_lines(form, line_memory, slot)
    return form.VISIBLE(inside, dots, rows, lines, b, h, g, row, i, j, env)


@jit
def step(
    form, WG: gl.constexpr, t, first, token, rows, state, sums, memory, bars, added, b, h, g, env, M, N
):  # fmt: skip
    """The sums after the ``t``-th tile."""
    outer_memory, inner_memory, line_memory, count_memory, cross_memory = memory
    _, full_bars, empty_bars = bars
    inner_count = M if form.OVER_ROWS else N
    slot = t % form.STAGES
    phase = (t // form.STAGES) & 1
    await_chunks(full_bars, slot, phase, 0, form.EARLY_CHUNKS)
    number = read_number(count_memory, 1 + slot)
    inner_first = (number // 2) * form.INNER_BLOCK
    is_masked = (number & 1) != 0
    if len(form.CROSS) > 0:
        is_masked = is_masked | (first + ROWS_OF_GROUP > (N if form.OVER_ROWS else M))
    inner = gl.expand_dims(inner_first + gl.arange(0, form.INNER_BLOCK, gl.SliceLayout(0, form.PAIRS)), 0)
    inner = gl.minimum(inner, inner_count - 1)
    row, i, j = positions(token, inner, M, N, form.OVER_ROWS)
    early = multiply(form, WG, outer_memory, inner_memory, slot, 0, form.EARLY_DOTS)
    await_chunks(full_bars, slot, phase, form.EARLY_CHUNKS, len(form.INNER_CHUNKS))
    if form.EAGER:
        late = multiply(form, WG, outer_memory, inner_memory, slot, form.EARLY_DOTS, len(form.DOTS))
        early = arrived(early, len(form.DOTS) - form.EARLY_DOTS)
    else:
        early = arrived(early, 0)
    if form.HIDE != 0:
        if is_masked:
            visible = visibility(form, first, inner_first, token, early, rows, line_memory, slot, b, h, g, env, M, N)
            early = hidden(early, visible, form.HIDE)
    lines = read_lines(form, line_memory, slot)
    tiles = form.EARLY(early, rows, lines, b, h, g, row, i, j, env)
    if form.HIDE == 0:
        if is_masked:
            visible = visibility(form, first, inner_first, token, early, rows, line_memory, slot, b, h, g, env, M, N)
            tiles = hidden(tiles, visible, 0.0)
    state = add_numbers(form, state, tiles, 0, form.WEIGHTS[0])
    if not form.EAGER:
        late = multiply(form, WG, outer_memory, inner_memory, slot, form.EARLY_DOTS, len(form.DOTS))
    sums = add_sums(form, sums, tiles, inner_memory, slot, 0, form.EARLY_SUMS, 0)
    if form.WEIGHTS[1] > form.WEIGHTS[0]:
        late = arrived(late, form.EARLY_SUMS)
        lines = read_lines(form, line_memory, slot)
        weights = form.LATE(late, tiles, rows, lines, b, h, g, row, i, j, env)
        if not form.VANISHES:
            if is_masked:
                visible = visibility(
                    form, first, inner_first, token, early, rows, line_memory, slot, b, h, g, env, M, N
                )
                weights = hidden(weights, visible, 0.0)
        state = add_numbers(form, state, weights, form.WEIGHTS[0], form.WEIGHTS[1])
        if len(form.CROSS) > 0:
            parts = cross(form, WG, t, weights, outer_memory, cross_memory)
        sums = add_sums(form, sums, weights, inner_memory, slot, form.EARLY_SUMS, len(form.SUMS), form.WEIGHTS[0])
        if len(form.CROSS) > 0:
            parts = arrived(parts, len(form.SUMS) - form.EARLY_SUMS)
        sums = arrived(sums, len(form.SUMS) - form.EARLY_SUMS)
        release(form, empty_bars, slot, False)
        if len(form.CROSS) > 0:
            add_cross(form, WG, parts, added, cross_memory, b, h, inner_first)
    sums = arrived(sums, 0)
    release(form, empty_bars, slot, True)
    return state, sums


@jit
def consume(form, WG: gl.constexpr, memory, bars, outs, row_outs, added, env, H, M, N):
    """The sums of 64 outer tokens."""
    b, h, outer_tile = place(form, gl.program_id(0), H, M, N)
    g = form.GROUP(b, h, env)
    first = outer_tile * OUTER_BLOCK + WG * ROWS_OF_GROUP
    outer_count = N if form.OVER_ROWS else M
    token = first + gl.arange(0, ROWS_OF_GROUP, gl.SliceLayout(1, form.PAIRS))
    token = gl.expand_dims(gl.minimum(token, outer_count - 1), 1)
    row, i, j = positions(token, token, M, N, form.OVER_ROWS)
    rows = form.ROWS(b, h, g, row, i, j, env)
    state = ()
    for _ in gl.static_range(len(form.NUMBERS)):
        state = state + (gl.zeros([ROWS_OF_GROUP], gl.float32, gl.SliceLayout(1, form.PAIRS)),)
    sums = ()
    for s in gl.static_range(len(form.SUMS)):
        sums = sums + (gl.zeros([ROWS_OF_GROUP, form.SUMS[s][2]], gl.float32, sum_layout(form.SUMS[s][2])),)
    mbarrier.wait(bars[0], 0)
    for t in range(read_number(memory[3], 0)):
        state, sums = step(form, WG, t, first, token, rows, state, sums, memory, bars, added, b, h, g, env, M, N)
    if len(form.CROSS) > 0:
        copies_out_done(0)
    finish(form, WG, sums, state, outs, row_outs, H, M, N)


@jit
def finish(form, WG: gl.constexpr, sums, state, outs, row_outs, H, M, N):
    """Writes vectors and numbers, scaled."""
    b, h, outer_tile = place(form, opaque(gl.program_id(0)), H, M, N)
    first = outer_tile * OUTER_BLOCK + WG * ROWS_OF_GROUP
    outer_count = N if form.OVER_ROWS else M
    head = b.to(gl.int64) * H + h
    token = first + gl.arange(0, ROWS_OF_GROUP, gl.SliceLayout(1, form.PAIRS))
    for s in gl.static_range(len(form.NUMBERS)):
        gl.store(row_outs[s] + head * outer_count + token, state[s] * form.OUTPUTS[1][s], mask=token < outer_count)
    for s in gl.static_range(len(form.SUMS)):
        token = first + gl.arange(0, ROWS_OF_GROUP, gl.SliceLayout(1, sum_layout(form.SUMS[s][2])))
        lane = gl.arange(0, form.SUMS[s][2], gl.SliceLayout(0, sum_layout(form.SUMS[s][2])))
        pointer, stride_b, stride_h, stride_token = outs[form.OUTPUTS[0][s][0]]
        base = pointer + b.to(gl.int64) * stride_b + h.to(gl.int64) * stride_h + form.OUTPUTS[0][s][1]
        offset = gl.expand_dims(token.to(gl.int64) * stride_token, 1) + gl.expand_dims(lane, 0)
        kept = gl.expand_dims(token < outer_count, 1) & gl.expand_dims(lane < form.OUTPUTS[0][s][2], 0)
        value = (sums[s] * form.OUTPUTS[0][s][3]).to(pointer.dtype.element_ty)
        gl.store(base + offset, value, mask=kept)


@jit
def allocate(descriptor, COUNT: gl.constexpr):
    """Shared memory for boxes of a descriptor."""
    return gl.allocate_shared_memory(descriptor.dtype, [COUNT] + descriptor.block_type.shape, descriptor.layout)


@jit
def walk(
    outers,
    inners,
    outs,
    row_outs,
    added,
    lists,
    env,
    H,
    M,
    N,
    OVER_ROWS: gl.constexpr,
    INNER_BLOCK: gl.constexpr,
    STAGES: gl.constexpr,
    EAGER: gl.constexpr,
    LISTED: gl.constexpr,
    LISTS_PER_BATCH: gl.constexpr,
    LISTS_PER_HEAD: gl.constexpr,
    OUTER_HEADS: gl.constexpr,
    INNER_HEADS: gl.constexpr,
    OUTER_CHUNKS: gl.constexpr,
    INNER_CHUNKS: gl.constexpr,
    HELD: gl.constexpr,
    DOTS: gl.constexpr,
    EARLY_DOTS: gl.constexpr,
    EARLY_CHUNKS: gl.constexpr,
    LINE_COUNT: gl.constexpr,
    WEIGHTS: gl.constexpr,
    VANISHES: gl.constexpr,
    HIDE: gl.constexpr,
    SUMS: gl.constexpr,
    EARLY_SUMS: gl.constexpr,
    NUMBERS: gl.constexpr,
    OUTPUTS: gl.constexpr,
    CROSS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    GROUP: gl.constexpr,
    RANGES: gl.constexpr,
    ROWS: gl.constexpr,
    LINES: gl.constexpr,
    VISIBLE: gl.constexpr,
    EARLY: gl.constexpr,
    LATE: gl.constexpr,
):
    """Grid: a program for each outer tile, query head and batch row."""
    form = Form(
        OVER_ROWS, INNER_BLOCK, STAGES, EAGER, LISTED, LISTS_PER_BATCH, LISTS_PER_HEAD, OUTER_HEADS, INNER_HEADS,
        OUTER_CHUNKS, INNER_CHUNKS, HELD, DOTS, EARLY_DOTS, EARLY_CHUNKS, LINE_COUNT, WEIGHTS, VANISHES, HIDE, SUMS,
        EARLY_SUMS, NUMBERS, OUTPUTS, CROSS, GROUP, RANGES, ROWS, LINES, VISIBLE, EARLY, LATE,
    )  # fmt: skip
    outer_memory = ()
    for c in gl.static_range(len(OUTER_CHUNKS)):
        outer_memory = outer_memory + (allocate(outers[c], GROUPS),)
    inner_memory = ()
    full_bars = ()
    empty_bars = ()
    for c in gl.static_range(len(INNER_CHUNKS)):
        inner_memory = inner_memory + (allocate(inners[c], STAGES),)
        full_bars = full_bars + (gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout()),)
        empty_bars = empty_bars + (gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout()),)
        for s in gl.static_range(STAGES):
            mbarrier.init(full_bars[c].index(s), count=2 if c == 0 else 1)
            mbarrier.init(empty_bars[c].index(s), count=GROUPS)
    line_memory = ()
    for _ in gl.static_range(LINE_COUNT):
        line = gl.allocate_shared_memory(gl.float32, [STAGES, INNER_BLOCK], gl.SwizzledSharedLayout(1, 1, 1, [0]))
        line_memory = line_memory + (line,)
    outer_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(outer_full, count=len(OUTER_CHUNKS) + 1)
    fence_async_shared()
    cross_memory = ()
    if len(CROSS) > 0:
        weight_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
        shape: gl.constexpr = [2 * GROUPS, ROWS_OF_GROUP, INNER_BLOCK]
        cross_memory = (
            gl.allocate_shared_memory(inners[0].dtype, shape, weight_layout), allocate(added, GROUPS)
        )  # fmt: skip
    count_memory = gl.allocate_shared_memory(gl.int32, [STAGES + 1, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    memory = (outer_memory, inner_memory, line_memory, count_memory, cross_memory)
    bars = (outer_full, full_bars, empty_bars)
    gl.warp_specialize(
        [
            (consume, (form, 0, memory, bars, outs, row_outs, added, env, H, M, N)),
            (consume, (form, 1, memory, bars, outs, row_outs, added, env, H, M, N)),
            (produce, (form, outers, inners, memory, bars, lists, env, H, M, N)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )
