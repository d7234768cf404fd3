"""The weights of a tile of pairs: what the slots make of dot products, and which pairs take part.

Where the tile is is read from shared memory, as all registers are taken.
"""

from attnc.templates.hopper.backward_form import ROWS_OF_GROUP, opaque
from attnc.templates.hopper.backward_products import hidden, read_lines
from attnc.templates.hopper.backward_tiles import told_place
from attnc.templates.hopper.gluon import gl, jit
from attnc.templates.triton.stream import positions


@jit
def visibility(form, WG: gl.constexpr, dots, rows, memory, slot, env, sizes):
    """Which pairs of a tile take part; none past the last tokens."""
    M = sizes[2]
    N = sizes[3]
    inner_first, is_masked, first, b, h, g = told_place(form, memory[3], slot)
    inner_count = M if form.OVER_ROWS else N
    outer_count = N if form.OVER_ROWS else M
    raw = opaque(gl.arange(0, form.INNER_BLOCK, gl.SliceLayout(0, form.PAIRS)))
    inside = gl.expand_dims(inner_first + raw < inner_count, 0)
    if len(form.CROSS) > 0:
        outer = first + WG * ROWS_OF_GROUP + gl.arange(0, ROWS_OF_GROUP, gl.SliceLayout(1, form.PAIRS))
        inside = inside & gl.expand_dims(outer < outer_count, 1)
    inner = gl.expand_dims(inner_first + gl.minimum(raw, inner_count - 1 - inner_first), 0)
    row, i, j = positions(outer_tokens(form, WG, first, sizes), inner, M, N, form.OVER_ROWS)
    lines = read_lines(form, memory[2], slot)
    return form.VISIBLE(inside, dots, rows, lines, b, h, g, row, i, j, env)


@jit
def outer_tokens(form, WG: gl.constexpr, first, sizes):
    """The tokens of a warpgroup, ``[64, 1]``; past the last, that again."""
    token = first + WG * ROWS_OF_GROUP + gl.arange(0, ROWS_OF_GROUP, gl.SliceLayout(1, form.PAIRS))
    return gl.expand_dims(gl.minimum(token, (sizes[3] if form.OVER_ROWS else sizes[2]) - 1), 1)


@jit
def pair_positions(form, WG: gl.constexpr, inner_first, first, sizes):
    """``row, i, j`` of the pairs of a tile."""
    M = sizes[2]
    N = sizes[3]
    inner = gl.expand_dims(inner_first + gl.arange(0, form.INNER_BLOCK, gl.SliceLayout(0, form.PAIRS)), 0)
    inner = gl.minimum(inner, (M if form.OVER_ROWS else N) - 1)
    return positions(outer_tokens(form, WG, first, sizes), inner, M, N, form.OVER_ROWS)


@jit
def early_tiles(form, WG: gl.constexpr, early, rows, memory, slot, env, sizes):
    """The early weights and what is kept of them, of dot products that have arrived; 0 where pairs are not visible."""
    inner_first, is_masked, first, b, h, g = told_place(form, memory[3], slot)
    row, i, j = pair_positions(form, WG, inner_first, first, sizes)
    if form.HIDE != 0:
        if is_masked:
            visible = visibility(form, WG, early, rows, memory, slot, env, sizes)
            early = hidden(early, visible, form.HIDE)
    lines = read_lines(form, memory[2], slot)
    tiles = form.EARLY(early, rows, lines, b, h, g, row, i, j, env)
    if form.HIDE == 0:
        if is_masked:
            visible = visibility(form, WG, early, rows, memory, slot, env, sizes)
            tiles = hidden(tiles, visible, 0.0)
    return tiles


@jit
def late_weights(form, WG: gl.constexpr, early, late, tiles, rows, memory, slot, env, sizes):
    """The weights with the cotangent; 0 where pairs are not visible."""
    inner_first, is_masked, first, b, h, g = told_place(form, memory[3], slot)
    row, i, j = pair_positions(form, WG, inner_first, first, sizes)
    lines = read_lines(form, memory[2], slot)
    weights = form.LATE(late, tiles, rows, lines, b, h, g, row, i, j, env)
    if not form.VANISHES:
        if is_masked:
            visible = visibility(form, WG, early, rows, memory, slot, env, sizes)
            weights = hidden(weights, visible, 0.0)
    return weights
