"""The products of one step of a walk, and what is waited for between them."""

from attnc.templates.hopper.backward_form import GROUPS, ROWS_OF_GROUP, sum_layout
from attnc.templates.hopper.gluon import (
    copies_out_done,
    fence_async_shared,
    gl,
    jit,
    mbarrier,
    tma_reduce_add,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@jit
def matrix(memory, at, ROWS: gl.constexpr):
    """A chunk of some tokens, ``[tokens, lanes]``."""
    buffer = memory.index(at)
    return buffer.reshape([ROWS, buffer.shape[3]])


@jit
def multiply(form, WG: gl.constexpr, outer_memory, inner_memory, slot, FIRST: gl.constexpr, LAST: gl.constexpr):
    """Starts the products ``FIRST..LAST`` of ``DOTS``: the dots of the tile, in flight."""
    dots = ()
    for x in gl.static_range(FIRST, LAST):
        if form.DOTS[x][2]:
            dot = gl.zeros([ROWS_OF_GROUP, form.INNER_BLOCK], gl.float32, form.PAIRS)
        outer = matrix(outer_memory[form.DOTS[x][0]], WG, ROWS_OF_GROUP)
        inner = matrix(inner_memory[form.DOTS[x][1]], slot, form.INNER_BLOCK)
        dot = warpgroup_mma(outer, inner.permute((1, 0)), dot, use_acc=not form.DOTS[x][2], is_async=True)
        if form.DOTS[x][3]:
            dots = dots + (dot,)
    return dots


@jit
def arrived(tokens, PENDING: gl.constexpr):
    """The values of products in flight, when at most ``PENDING`` later ones are left."""
    if len(tokens) == 0:
        return tokens
    elif len(tokens) == 1:
        return (warpgroup_mma_wait(PENDING, deps=tokens),)
    else:
        return warpgroup_mma_wait(PENDING, deps=tokens)


@jit
def await_chunks(full_bars, slot, phase, FIRST: gl.constexpr, LAST: gl.constexpr):
    for c in gl.static_range(FIRST, LAST):
        mbarrier.wait(full_bars[c].index(slot), phase)


@jit
def release(form, empty_bars, slot, HELD: gl.constexpr):
    for c in gl.static_range(len(form.INNER_CHUNKS)):
        if form.HELD[c] == HELD:
            mbarrier.arrive(empty_bars[c].index(slot), count=1)


@jit
def read_lines(form, line_memory, slot):
    lines = ()
    for r in gl.static_range(form.LINE_COUNT):
        line = line_memory[r].index(slot).load(gl.SliceLayout(0, form.PAIRS))
        lines = lines + (gl.expand_dims(line, 0),)
    return lines


@jit
def add_sums(form, sums, weights, inner_memory, slot, FIRST: gl.constexpr, LAST: gl.constexpr, BEFORE: gl.constexpr):
    """Starts the sums ``FIRST..LAST``, whose weights are numbered from ``BEFORE`` on; the others as they are."""
    added = ()
    for s in gl.static_range(len(form.SUMS)):
        total = sums[s]
        if s >= FIRST and s < LAST:
            value = matrix(inner_memory[form.SUMS[s][0]], slot, form.INNER_BLOCK)
            weight = weights[form.SUMS[s][1] - BEFORE].to(value.dtype)
            weight = gl.convert_layout(weight, gl.DotOperandLayout(0, sum_layout(form.SUMS[s][2]), 2))
            total = warpgroup_mma(weight, value, total, is_async=True)
        added = added + (total,)
    return added


@jit
def add_numbers(form, state, weights, FIRST: gl.constexpr, LAST: gl.constexpr):
    """The sums of the weights ``FIRST..LAST`` that are wanted as numbers."""
    added = ()
    for s in gl.static_range(len(form.NUMBERS)):
        total = state[s]
        if form.NUMBERS[s] >= FIRST and form.NUMBERS[s] < LAST:
            total = total + gl.sum(weights[form.NUMBERS[s] - FIRST], 1)
        added = added + (total,)
    return added


@jit
def hidden(tiles, visible, VALUE: gl.constexpr):
    """The tiles with ``VALUE`` where pairs are not visible."""
    kept = ()
    for x in gl.static_range(len(tiles)):
        kept = kept + (gl.where(visible, tiles[x], VALUE),)
    return kept


@jit
def together(ID: gl.constexpr, THREADS: gl.constexpr):
    """Waits for both warpgroups of consumers."""
    gl.inline_asm_elementwise(
        f"bar.sync $1, {THREADS}; mov.u32 $0, 0;", "=r,r", [gl.to_tensor(ID)], dtype=gl.int32, is_pure=False, pack=1
    )  # fmt: skip


@jit
def cross(form, WG: gl.constexpr, t, weights, outer_memory, cross_memory):
    """Starts the products that sum a weight over the outer tokens: this warpgroup's part, ``[64, lanes]``."""
    weight_memory, _ = cross_memory
    weight = weights[form.CROSS[0] - form.WEIGHTS[0]]
    buffer = (t % 2) * GROUPS
    weight_memory.index(buffer + WG).store(weight.to(weight_memory.dtype))
    fence_async_shared()
    together(8, 256)
    part = gl.zeros([ROWS_OF_GROUP, form.CROSS[2]], gl.float32, sum_layout(form.CROSS[2]))
    for w in gl.static_range(GROUPS):
        left = weight_memory.index(buffer + w).permute((1, 0))
        right = matrix(outer_memory[form.CROSS[1]], w, ROWS_OF_GROUP)
        if form.INNER_BLOCK == ROWS_OF_GROUP:
            right = right.slice(WG * form.CROSS[2], form.CROSS[2], 1)
        else:
            left = left.slice(WG * ROWS_OF_GROUP, ROWS_OF_GROUP, 0)
        part = warpgroup_mma(left, right, part, use_acc=w > 0, is_async=True)
    return (part,)


@jit
def add_cross(form, WG: gl.constexpr, parts, added, cross_memory, b, h, inner_first):
    """Adds this warpgroup's part to the tensor."""
    _, staging = cross_memory
    mine = staging.index(WG)
    copies_out_done(0)
    mine.reshape([ROWS_OF_GROUP, form.CROSS[2]]).store(parts[0])
    fence_async_shared()
    if form.INNER_BLOCK == ROWS_OF_GROUP:
        tma_reduce_add(added, [b, h, inner_first, WG * form.CROSS[2]], mine)
    else:
        tma_reduce_add(added, [b, h, inner_first + WG * ROWS_OF_GROUP, 0], mine)
