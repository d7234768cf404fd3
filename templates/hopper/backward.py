"""Walks of a backward on Hopper: sums over the inner tokens of pair terms times vectors, by warpgroup products.

A program takes tiles of 128 outer tokens, one after the other. Two warpgroups of consumers have 64 each; a warp of a
third, the producer, brings tiles to shared memory with TMA, and numbers of inner tokens by loads, and goes on to the
next outer tile while the sums of the last are written.

A step multiplies the *early* dot products, computes from them the early weights and what later weights keep of them,
then multiplies the *late* dot products (those with the cotangent) while the early weights are summed. With ``AHEAD``
the early part of the next tile is done while the late weights are summed, so that no exponential waits with nothing
beside it. No product is in flight over the loop's back edge: ptxas would run all of them one by one.

Slots beside those of the portable ``stream`` (``GROUP``, ``RANGES``, ``ROWS``, ``VISIBLE``):

- ``LINES(b, h, g, row, i, j, env)``: what is read once an inner token, ``[tokens]`` each;
- ``EARLY(dots, rows, lines, b, h, g, row, i, j, env)``: early weights, then what ``LATE`` is given as ``kept``;
- ``LATE(dots, kept, rows, lines, b, h, g, row, i, j, env)``: late weights.

Weights of pairs that are not visible are set to 0 here, in the tiles that have such pairs.
"""

from attnc.templates.hopper.backward_form import GROUPS, ROWS_OF_GROUP, Form, opaque, sum_layout
from attnc.templates.hopper.backward_products import (
    add_cross,
    add_numbers,
    add_sums,
    arrived,
    await_chunks,
    cross,
    multiply,
    release,
    share,
)
from attnc.templates.hopper.backward_tiles import (
    FIELDS,
    PLACES,
    changes_outer,
    members,
    place,
    produce,
    told_place,
    told_walk,
)
from attnc.templates.hopper.backward_weights import early_tiles, late_weights, outer_tokens
from attnc.templates.hopper.gluon import copies_out_done, fence_async_shared, gl, jit, mbarrier
from attnc.templates.triton.stream import positions


@jit
def step(form, WG: gl.constexpr, it, rows, state, sums, memory, bars, added, env, sizes):
    """The sums after the tile that came ``it``-th through the ring."""
    outer_memory, inner_memory, line_memory, place_memory, cross_memory = memory
    outer_full, outer_empty, full_bars, empty_bars = bars
    slot = it % form.STAGES
    phase = (it // form.STAGES) & 1
    await_chunks(full_bars, slot, phase, 0, form.EARLY_CHUNKS)
    early = multiply(form, WG, outer_memory, inner_memory, slot, 0, form.EARLY_DOTS)
    await_chunks(full_bars, slot, phase, form.EARLY_CHUNKS, len(form.INNER_CHUNKS))
    if form.EAGER:
        late = multiply(form, WG, outer_memory, inner_memory, slot, form.EARLY_DOTS, len(form.DOTS))
        early = arrived(early, len(form.DOTS) - form.EARLY_DOTS)
    else:
        early = arrived(early, 0)
    tiles = early_tiles(form, WG, early, rows, memory, slot, env, sizes)
    state = add_numbers(form, state, tiles, 0, form.WEIGHTS[0])
    if not form.EAGER:
        late = multiply(form, WG, outer_memory, inner_memory, slot, form.EARLY_DOTS, len(form.DOTS))
    sums = add_sums(form, sums, tiles, inner_memory, slot, 0, form.EARLY_SUMS, 0)
    if form.WEIGHTS[1] > form.WEIGHTS[0]:
        late = arrived(late, form.EARLY_SUMS)
        weights = late_weights(form, WG, early, late, tiles, rows, memory, slot, env, sizes)
        state = add_numbers(form, state, weights, form.WEIGHTS[0], form.WEIGHTS[1])
        if len(form.CROSS) > 0:
            share(form, WG, it, weights, cross_memory)
            parts = cross(form, WG, it, outer_memory, cross_memory)
        sums = add_sums(form, sums, weights, inner_memory, slot, form.EARLY_SUMS, len(form.SUMS), form.WEIGHTS[0])
        if len(form.CROSS) > 0:
            parts = arrived(parts, len(form.SUMS) - form.EARLY_SUMS)
        sums = arrived(sums, len(form.SUMS) - form.EARLY_SUMS)
        inner_first, is_masked, first, b, h, g = told_place(form, place_memory, slot)
        release(form, empty_bars, slot, False)
        if len(form.CROSS) > 0:
            add_cross(form, WG, parts, added, cross_memory, b, h, inner_first)
    sums = arrived(sums, 0)
    release(form, empty_bars, slot, True)
    return state, sums


@jit
def begin_ahead(form, WG: gl.constexpr, it, rows, memory, bars, env, sizes):
    """The early tiles of the tile that comes ``it``-th through the ring."""
    slot = it % form.STAGES
    await_chunks(bars[2], slot, (it // form.STAGES) & 1, 0, form.EARLY_CHUNKS)
    early = arrived(multiply(form, WG, memory[0], memory[1], slot, 0, form.EARLY_DOTS), 0)
    tiles = early_tiles(form, WG, early, rows, memory, slot, env, sizes)
    await_late(form, bars[2], it)
    return tiles


@jit
def await_late(form, full_bars, it):
    """Waits for what of a tile only late products use; the assembler moves no exponential beyond."""
    await_chunks(full_bars, it % form.STAGES, (it // form.STAGES) & 1, form.EARLY_CHUNKS, len(form.INNER_CHUNKS))


@jit
def step_ahead(form, WG: gl.constexpr, it, end, rows, tiles, state, sums, memory, bars, added, env, sizes):
    """The same, given the early tiles; and those of the next tile, made while the late weights are summed.

    After the last tile they are made of it once more, for nothing: a branch around products would keep the assembler
    from overlapping any.
    """
    outer_memory, inner_memory, line_memory, place_memory, cross_memory = memory
    outer_full, outer_empty, full_bars, empty_bars = bars
    slot = it % form.STAGES
    state = add_numbers(form, state, tiles, 0, form.WEIGHTS[0])
    late = multiply(form, WG, outer_memory, inner_memory, slot, form.EARLY_DOTS, len(form.DOTS))
    sums = add_sums(form, sums, tiles, inner_memory, slot, 0, form.EARLY_SUMS, 0)
    late = arrived(late, form.EARLY_SUMS)
    weights = late_weights(form, WG, (), late, tiles, rows, memory, slot, env, sizes)
    state = add_numbers(form, state, weights, form.WEIGHTS[0], form.WEIGHTS[1])
    following = gl.minimum(it + 1, end - 1)
    next_slot = following % form.STAGES
    await_chunks(full_bars, next_slot, (following // form.STAGES) & 1, 0, form.EARLY_CHUNKS)
    if len(form.CROSS) > 0:
        share(form, WG, it, weights, cross_memory)
    sums = arrived(sums, 0)
    early = multiply(form, WG, outer_memory, inner_memory, next_slot, 0, form.EARLY_DOTS)
    if len(form.CROSS) > 0:
        parts = cross(form, WG, it, outer_memory, cross_memory)
    sums = add_sums(form, sums, weights, inner_memory, slot, form.EARLY_SUMS, len(form.SUMS), form.WEIGHTS[0])
    late_sums: gl.constexpr = len(form.SUMS) - form.EARLY_SUMS
    early = arrived(early, late_sums)
    if len(form.CROSS) > 0:
        parts = arrived(parts, late_sums)
        inner_first, is_masked, first, b, h, g = told_place(form, place_memory, slot)
        add_cross(form, WG, parts, added, cross_memory, b, h, inner_first)
    next_tiles = early_tiles(form, WG, early, rows, memory, next_slot, env, sizes)
    await_late(form, full_bars, following)
    sums = arrived(sums, 0)
    release(form, empty_bars, slot, False)
    release(form, empty_bars, slot, True)
    return next_tiles, state, sums


@jit
def consume(form, WG: gl.constexpr, memory, bars, board, outs, row_outs, added, env, sizes):
    """The sums of 64 outer tokens of each tile."""
    outer_full = bars[0]
    outer_empty = bars[1]
    it = 0
    turn = 0
    load = 0
    tile, count = told_walk(board, turn)
    while tile >= 0:
        b, head, first = place(form, tile, sizes)
        token = outer_tokens(form, WG, first, sizes)
        row, i, j = positions(token, token, sizes[2], sizes[3], form.OVER_ROWS)
        state = ()
        for n in gl.static_range(len(form.NUMBERS)):  # noqa: B007
            state = state + (gl.zeros([ROWS_OF_GROUP], gl.float32, gl.SliceLayout(1, form.PAIRS)),)
        sums = ()
        for s in gl.static_range(len(form.SUMS)):
            sums = sums + (gl.zeros([ROWS_OF_GROUP, form.SUMS[s][2]], gl.float32, sum_layout(form.SUMS[s][2])),)
        each = members(form, sizes)
        for member in range(each):
            h = head * each + member
            g = form.GROUP(b, h, env)
            tile, count = told_walk(board, turn)
            if changes_outer(form, member, 0):
                mbarrier.wait(outer_full, load & 1)
            rows = form.ROWS(b, h, g, row, i, j, env)
            end = it + count
            if form.AHEAD:
                tiles = begin_ahead(form, WG, it, rows, memory, bars, env, sizes)
                for t in range(it, end):
                    tiles, state, sums = step_ahead(
                        form, WG, t, end, rows, tiles, state, sums, memory, bars, added, env, sizes
                    )  # fmt: skip
            else:
                for t in range(it, end):
                    state, sums = step(form, WG, t, rows, state, sums, memory, bars, added, env, sizes)
            it = end
            if changes_outer(form, member, each - 1):
                mbarrier.arrive(outer_empty, count=1)
                load += 1
            mbarrier.arrive(board[2].index(turn & 1), count=1)
            turn += 1
        finish(form, WG, tile, sums, state, outs, row_outs, sizes)
        tile, count = told_walk(board, turn)
    if len(form.CROSS) > 0:
        copies_out_done(0)


@jit
def finish(form, WG: gl.constexpr, tile, sums, state, outs, row_outs, sizes):
    """Writes vectors and numbers, scaled."""
    heads, H, M, N, B = sizes
    b, head, first = place(form, opaque(tile), sizes)
    first += WG * ROWS_OF_GROUP
    outer_count = N if form.OVER_ROWS else M
    line = (b.to(gl.int64) * heads + head) * outer_count
    token = first + gl.arange(0, ROWS_OF_GROUP, gl.SliceLayout(1, form.PAIRS))
    for s in gl.static_range(len(form.NUMBERS)):
        gl.store(row_outs[s] + line + token, state[s] * form.OUTPUTS[1][s], mask=token < outer_count)
    for s in gl.static_range(len(form.SUMS)):
        token = first + gl.arange(0, ROWS_OF_GROUP, gl.SliceLayout(1, sum_layout(form.SUMS[s][2])))
        lane = gl.arange(0, form.SUMS[s][2], gl.SliceLayout(0, sum_layout(form.SUMS[s][2])))
        pointer, stride_b, stride_h, stride_token = outs[form.OUTPUTS[0][s][0]]
        base = pointer + b.to(gl.int64) * stride_b + head.to(gl.int64) * stride_h + form.OUTPUTS[0][s][1]
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
    counter,
    lists,
    env,
    HEADS,
    H,
    M,
    N,
    B,
    OVER_ROWS: gl.constexpr,
    GROUPED: gl.constexpr,
    OUTER_PER_MEMBER: gl.constexpr,
    CACHED: gl.constexpr,
    INNER_BLOCK: gl.constexpr,
    STAGES: gl.constexpr,
    EAGER: gl.constexpr,
    AHEAD: gl.constexpr,
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
    """Grid: at most one program for each multiprocessor. There are ``HEADS`` heads to a batch row, of ``H`` queries."""
    form = Form(
        OVER_ROWS, GROUPED, OUTER_PER_MEMBER, CACHED, INNER_BLOCK, STAGES, EAGER, AHEAD, LISTED, LISTS_PER_BATCH,
        LISTS_PER_HEAD, OUTER_HEADS, INNER_HEADS, OUTER_CHUNKS, INNER_CHUNKS, HELD, DOTS, EARLY_DOTS, EARLY_CHUNKS,
        LINE_COUNT, WEIGHTS, VANISHES, HIDE, SUMS, EARLY_SUMS, NUMBERS, OUTPUTS, CROSS, GROUP, RANGES, ROWS, LINES,
        VISIBLE, EARLY, LATE,
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
    outer_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(outer_full, count=len(OUTER_CHUNKS))
    mbarrier.init(outer_empty, count=GROUPS)
    told_of = gl.allocate_shared_memory(gl.int32, [2 * FIELDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(2):
        mbarrier.init(ready.index(s), count=1)
        mbarrier.init(free.index(s), count=GROUPS)
    fence_async_shared()
    cross_memory = ()
    if len(CROSS) > 0:
        weight_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
        shape: gl.constexpr = [2 * GROUPS, ROWS_OF_GROUP, INNER_BLOCK]
        cross_memory = (
            gl.allocate_shared_memory(inners[0].dtype, shape, weight_layout), allocate(added, GROUPS)
        )  # fmt: skip
    place_memory = gl.allocate_shared_memory(gl.int32, [PLACES * STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    memory = (outer_memory, inner_memory, line_memory, place_memory, cross_memory)
    bars = (outer_full, outer_empty, full_bars, empty_bars)
    board = (told_of, ready, free)
    sizes = (HEADS, H, M, N, B)
    gl.warp_specialize(
        [
            (consume, (form, 0, memory, bars, board, outs, row_outs, added, env, sizes)),
            (consume, (form, 1, memory, bars, board, outs, row_outs, added, env, sizes)),
            (produce, (form, outers, inners, memory, bars, board, counter, lists, env, sizes)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )
