"""Which tiles a program of a walk visits, and the warp that brings them to shared memory."""

from attnc.templates.hopper.backward_form import GROUPS, OUTER_BLOCK, ROWS_OF_GROUP
from attnc.templates.hopper.gluon import (
    copy_in,
    gl,
    jit,
    mbarrier,
)
from attnc.templates.triton.segments import count_full, count_masked, disjoint, full_tile, masked_tile
from attnc.templates.triton.stream import positions


@jit
def place(form, program, H, M, N):
    """Batch row, query head and outer tile of a program."""
    tiles = ((N if form.OVER_ROWS else M) + OUTER_BLOCK - 1) // OUTER_BLOCK
    outer_tile = program % tiles
    if not form.OVER_ROWS:
        outer_tile = tiles - 1 - outer_tile
    return program // tiles // H, program // tiles % H, outer_tile


@jit
def begin(form, lists, env, H, M, N):
    """Where this program is, and the tiles it visits: how many are full and masked, and where they are."""
    outer_count = N if form.OVER_ROWS else M
    inner_count = M if form.OVER_ROWS else N
    b, h, outer_tile = place(form, gl.program_id(0), H, M, N)
    g = form.GROUP(b, h, env)
    first = outer_tile * OUTER_BLOCK
    if form.LISTED:
        full_list, masked_list, counts = lists
        line = outer_tile
        tiles = (outer_count + OUTER_BLOCK - 1) // OUTER_BLOCK
        if form.LISTS_PER_BATCH and form.LISTS_PER_HEAD:
            line += (b * H + h) * tiles
        elif form.LISTS_PER_BATCH:
            line += b * tiles
        elif form.LISTS_PER_HEAD:
            line += h * tiles
        offset = line.to(gl.int64) * ((inner_count + form.INNER_BLOCK - 1) // form.INNER_BLOCK)
        visits = (full_list + offset, masked_list + offset)
        full = gl.load(counts + line * 2)
        masked = gl.load(counts + line * 2 + 1)
    else:
        inner_origin = N - M if form.OVER_ROWS else 0
        outer_origin = 0 if form.OVER_ROWS else N - M
        last = gl.minimum(first + OUTER_BLOCK, outer_count) - 1 + outer_origin
        spans = form.RANGES(b, h, g, first + outer_origin, last, env)
        visits = disjoint(spans, inner_origin, inner_count, form.INNER_BLOCK)
        full = count_full(visits)
        masked = count_masked(visits)
    return b, h, g, first, visits, full, masked


@jit
def tile_at(form, visits, t, full, masked):
    """The ``t``-th tile; past the last, any."""
    if form.LISTED:
        tile = gl.load(visits[0] + t, mask=t < full, other=0)
        tile += gl.load(visits[1] + (t - full), mask=(t >= full) & (t < full + masked), other=0)
    else:
        tile = gl.where(t < full, full_tile(visits, t), masked_tile(visits, t - full))
    return tile


@jit
def write_number(memory, at, value):
    """Puts a number where the consumers find it, before the barrier that lets them look."""
    memory.index(at).store(gl.full([1], value, gl.int32, gl.BlockedLayout([1], [32], [1], [0])))


@jit
def read_number(memory, at):
    """The number that the producer put there."""
    return gl.max(memory.index(at).load(gl.BlockedLayout([1], [32], [4], [0])), 0)


@jit
def produce(form, outers, inners, memory, bars, lists, env, H, M, N):
    """Brings the outer tile once and the inner tiles in turn."""
    outer_memory, inner_memory, line_memory, count_memory, _ = memory
    outer_full, full_bars, empty_bars = bars
    b, h, g, first, visits, full, masked = begin(form, lists, env, H, M, N)
    for c in gl.static_range(len(form.OUTER_CHUNKS)):
        mbarrier.expect(outer_full, GROUPS * outers[c].block_type.nbytes)
        head = h if form.OUTER_HEADS[form.OUTER_CHUNKS[c][0]] else g
        for w in gl.static_range(GROUPS):
            copy_in(
                outers[c], [b, head, first + w * ROWS_OF_GROUP, 0], outer_full, outer_memory[c].index(w)
            )  # fmt: skip
    write_number(count_memory, 0, full + masked)
    mbarrier.arrive(outer_full, count=1)
    inner_count = M if form.OVER_ROWS else N
    raw = gl.arange(0, form.INNER_BLOCK, gl.BlockedLayout([1], [32], [1], [0]))
    for t in range(full + masked):
        tile = tile_at(form, visits, t, full, masked)
        inner_first = tile * form.INNER_BLOCK
        slot = t % form.STAGES
        phase = (t // form.STAGES) & 1
        for c in gl.static_range(len(form.INNER_CHUNKS)):
            ready = full_bars[c].index(slot)
            mbarrier.wait(empty_bars[c].index(slot), phase ^ 1)
            mbarrier.expect(ready, inners[c].block_type.nbytes)
            head = h if form.INNER_HEADS[form.INNER_CHUNKS[c][0]] else g
            copy_in(
                inners[c], [b, head, inner_first, 0], ready, inner_memory[c].index(slot)
            )  # fmt: skip
            if c == 0:
                write_number(count_memory, 1 + slot, tile * 2 + (t >= full).to(gl.int32))
                inner = inner_first + gl.minimum(raw, inner_count - 1 - inner_first)
                row, i, j = positions(inner, inner, M, N, form.OVER_ROWS)
                lines = form.LINES(b, h, g, row, i, j, env)
                for r in gl.static_range(form.LINE_COUNT):
                    line_memory[r].index(slot).store(lines[r])
                mbarrier.arrive(ready, count=1)
