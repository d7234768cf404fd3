"""Which tiles the programs of a walk take and visit, and the warp that brings them to shared memory.

A program takes its next outer tile from a counter. A tile is walked once for each of its query heads, one after the
other where the sums are grouped; consumers are told of each such walk how many inner tiles it has.
"""

from attnc.templates.hopper.backward_form import GROUPS, OUTER_BLOCK, ROWS_OF_GROUP
from attnc.templates.hopper.gluon import copy_in, gl, jit, mbarrier
from attnc.templates.hopper.schedule import tell, told
from attnc.templates.triton import order
from attnc.templates.triton.segments import count_full, count_masked, disjoint, full_tile, masked_tile
from attnc.templates.triton.stream import positions

FIELDS: gl.constexpr = gl.constexpr(2)
"""What consumers are told of a walk: which outer tile it is of, -1 where there is none any more, and inner tiles."""
PLACES: gl.constexpr = gl.constexpr(5)
"""What they are told of an inner tile: where it is and whether it is masked, the first outer token, ``b h g``."""


@jit
def outer_tiles(form, sizes):
    """How many outer tiles a head has."""
    return gl.cdiv(sizes[3] if form.OVER_ROWS else sizes[2], OUTER_BLOCK)


@jit
def place(form, tile, sizes):
    """Batch row, head of the sums and first token of an outer tile. Rows are counted backwards: late ones see more."""
    heads, H, M, N, B = sizes
    tiles = outer_tiles(form, sizes)
    span = order.span_of(M if form.OVER_ROWS else N, form.CACHED)
    at, head, b = order.place(tile, tiles, heads, heads * B, span)
    if not form.OVER_ROWS:
        at = tiles - 1 - at
    return b, head, at * OUTER_BLOCK


@jit
def members(form, sizes):
    """How many query heads an outer tile is walked for."""
    count = 1
    if form.GROUPED:
        count = sizes[1] // sizes[0]
    return count


@jit
def changes_outer(form, member, at):
    """Whether a walk has an outer tile of its own, or is that of the member ``at``."""
    if form.OUTER_PER_MEMBER:
        changes = member >= 0
    else:
        changes = member == at
    return changes


@jit
def visits(form, b, h, g, first, lists, env, sizes):
    """The inner tiles that are visited: where they are found, and how many are full and masked."""
    heads, H, M, N, B = sizes
    outer_count = N if form.OVER_ROWS else M
    inner_count = M if form.OVER_ROWS else N
    if form.LISTED:
        full_list, masked_list, counts = lists
        line = first // OUTER_BLOCK
        tiles = outer_tiles(form, sizes)
        if form.LISTS_PER_BATCH and form.LISTS_PER_HEAD:
            line += (b * H + h) * tiles
        elif form.LISTS_PER_BATCH:
            line += b * tiles
        elif form.LISTS_PER_HEAD:
            line += h * tiles
        offset = line.to(gl.int64) * gl.cdiv(inner_count, form.INNER_BLOCK)
        source = (full_list + offset, masked_list + offset)
        full = gl.load(counts + line * 2)
        masked = gl.load(counts + line * 2 + 1)
    else:
        inner_origin = N - M if form.OVER_ROWS else 0
        outer_origin = 0 if form.OVER_ROWS else N - M
        last = gl.minimum(first + OUTER_BLOCK, outer_count) - 1 + outer_origin
        spans = form.RANGES(b, h, g, first + outer_origin, last, env)
        source = disjoint(spans, inner_origin, inner_count, form.INNER_BLOCK)
        full = count_full(source)
        masked = count_masked(source)
    return source, full, masked


@jit
def tile_at(form, source, t, full, masked):
    """The ``t``-th tile; 0 past the last."""
    if form.LISTED:
        tile = gl.load(source[0] + t, mask=t < full, other=0)
        tile += gl.load(source[1] + (t - full), mask=(t >= full) & (t < full + masked), other=0)
    else:
        tile = gl.where(t < full, full_tile(source, t), masked_tile(source, t - full))
        tile = gl.where(t < full + masked, tile, 0)
    return tile


@jit
def tell_walk(board, turn, tile, count):
    """Producer: say which outer tile is walked next, and over how many inner tiles."""
    memory, ready, free = board
    slot = turn & 1
    mbarrier.wait(free.index(slot), ((turn >> 1) & 1) ^ 1)
    tell(memory, slot * FIELDS, tile)
    tell(memory, slot * FIELDS + 1, count)
    mbarrier.arrive(ready.index(slot), count=1)


@jit
def told_walk(board, turn):
    """Consumer: the outer tile of a walk, and its inner tiles."""
    memory = board[0]
    ready = board[1]
    slot = turn & 1
    mbarrier.wait(ready.index(slot), (turn >> 1) & 1)
    return told(memory, slot * FIELDS), told(memory, slot * FIELDS + 1)


@jit
def tell_place(memory, slot, tile, is_masked, first, b, h, g):
    """Producer: say where an inner tile is."""
    tell(memory, slot * PLACES, tile * 2 + is_masked.to(gl.int32))
    tell(memory, slot * PLACES + 1, first)
    tell(memory, slot * PLACES + 2, b)
    tell(memory, slot * PLACES + 3, h)
    tell(memory, slot * PLACES + 4, g)


@jit
def told_place(form, memory, slot):
    """Consumer: the first inner token, whether a mask is needed, the first outer token, ``b``, ``h`` and ``g``."""
    number = told(memory, slot * PLACES)
    first = told(memory, slot * PLACES + 1)
    b = told(memory, slot * PLACES + 2)
    h = told(memory, slot * PLACES + 3)
    g = told(memory, slot * PLACES + 4)
    return (number // 2) * form.INNER_BLOCK, (number & 1) != 0, first, b, h, g


@jit
def copy_outer(form, outers, memory, bars, load, b, h, g, first):
    """The outer tile, when the one before it is needed no more."""
    outer_full = bars[0]
    outer_empty = bars[1]
    mbarrier.wait(outer_empty, (load & 1) ^ 1)
    for c in gl.static_range(len(form.OUTER_CHUNKS)):
        mbarrier.expect(outer_full, GROUPS * outers[c].block_type.nbytes)
        head = h if form.OUTER_HEADS[form.OUTER_CHUNKS[c][0]] else g
        for w in gl.static_range(GROUPS):
            copy_in(outers[c], [b, head, first + w * ROWS_OF_GROUP, 0], outer_full, memory[0][c].index(w))


@jit
def copy_inner(form, inners, memory, bars, it, b, h, g, first, tile, is_masked, env, M, N):
    """An inner tile into the ring, with the numbers of its tokens."""
    outer_memory, inner_memory, line_memory, place_memory, cross_memory = memory
    outer_full, outer_empty, full_bars, empty_bars = bars
    inner_count = M if form.OVER_ROWS else N
    raw = gl.arange(0, form.INNER_BLOCK, gl.BlockedLayout([1], [32], [1], [0]))
    inner_first = tile * form.INNER_BLOCK
    slot = it % form.STAGES
    phase = (it // form.STAGES) & 1
    for c in gl.static_range(len(form.INNER_CHUNKS)):
        ready = full_bars[c].index(slot)
        mbarrier.wait(empty_bars[c].index(slot), phase ^ 1)
        mbarrier.expect(ready, inners[c].block_type.nbytes)
        head = h if form.INNER_HEADS[form.INNER_CHUNKS[c][0]] else g
        copy_in(inners[c], [b, head, inner_first, 0], ready, inner_memory[c].index(slot))
        if c == 0:
            tell_place(place_memory, slot, tile, is_masked, first, b, h, g)
            inner = inner_first + gl.minimum(raw, inner_count - 1 - inner_first)
            row, i, j = positions(inner, inner, M, N, form.OVER_ROWS)
            lines = form.LINES(b, h, g, row, i, j, env)
            for r in gl.static_range(form.LINE_COUNT):
                line_memory[r].index(slot).store(lines[r])
            mbarrier.arrive(ready, count=1)


@jit
def produce(form, outers, inners, memory, bars, board, counter, lists, env, sizes):
    """Brings outer tiles and, through the ring, the inner tiles of each; the first of these before their outer tile."""
    heads, H, M, N, B = sizes
    tiles = outer_tiles(form, sizes) * heads * B
    it = 0
    turn = 0
    load = 0
    tile = gl.program_id(0)
    while tile < tiles:
        b, head, first = place(form, tile, sizes)
        each = members(form, sizes)
        past = first < 0
        if len(form.CROSS) > 0:  # sums over the outer tokens must not take those past the last
            past = first + OUTER_BLOCK > (N if form.OVER_ROWS else M)
        for member in range(each):
            h = head * each + member
            g = form.GROUP(b, h, env)
            source, full, masked = visits(form, b, h, g, first, lists, env, sizes)
            count = full + masked
            if form.AHEAD:  # begins before it can know that there is nothing: one tile that is masked altogether
                count = gl.maximum(count, 1)
            tell_walk(board, turn, tile, count)
            turn += 1
            for t in range(gl.maximum(count, 1)):
                if t < count:
                    inner = tile_at(form, source, t, full, masked)
                    copy_inner(form, inners, memory, bars, it, b, h, g, first, inner, past | (t >= full), env, M, N)
                    it += 1
                if (t == 0) & changes_outer(form, member, 0):
                    copy_outer(form, outers, memory, bars, load, b, h, g, first)
                    load += 1
        tile = gl.atomic_add(counter, 1, sem="relaxed") + gl.num_programs(0)
    tell_walk(board, turn, -1, 0)
