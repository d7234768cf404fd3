"""What a group of warps writes at the end of a tile."""

from attnc.templates.hopper.config import GROUP_ROWS, sums_layout
from attnc.templates.hopper.gluon import copy_out, fence_async_shared, gl, jit
from attnc.templates.hopper.products import flat
from attnc.templates.hopper.rows import gathered, positions


@jit
def write_rows(cfg, state, row_outs, b, h, first, env, sizes):
    """The numbers of each row."""
    H, M, N = sizes
    row, i = positions(first, cfg.scores, sizes)
    g = cfg.GROUP(b, h, env)
    rows = cfg.ROW_READS(b, h, g, row, i, i, env)
    numbers = cfg.FINISH_ROWS(gathered(cfg, state, gl.SliceLayout(1, cfg.scores)), rows, b, h, g, row, i, env)
    raw = gl.expand_dims(gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, cfg.scores)), 1)
    for r in gl.static_range(len(row_outs)):
        line = row_outs[r] + (b.to(gl.int64) * H + h) * M + first
        gl.store(line + raw, numbers[r], mask=first + raw < M)


@jit
def write_lanes(
    cfg, c: gl.constexpr, WIDTH: gl.constexpr, sums, state, queries, q_slot, outs, b, h, first, env, sizes
):  # fmt: skip
    """Some lanes of the outputs: through the memory of the queries by TMA if ``STAGED``, else directly."""
    H, M, N = sizes
    g = cfg.GROUP(b, h, env)
    layout: gl.constexpr = sums_layout(WIDTH)
    row, i = positions(first, layout, sizes)
    rows = cfg.ROW_READS(b, h, g, row, i, i, env)
    whole = gathered(cfg, state, gl.SliceLayout(1, layout))
    lane = gl.expand_dims(gl.arange(0, WIDTH, gl.SliceLayout(0, layout)), 0)
    parts = ()
    for s in gl.static_range(gl.constexpr(cfg.OUTPUTS[c][5])):
        parts = parts + (sums[cfg.OUTPUTS[c][3] + s * cfg.OUTPUTS[c][4]],)
    vectors = cfg.FINISH(parts, whole, rows, b, h, g, row, i, cfg.OUTPUTS[c][0] + lane, env, c)
    if cfg.STAGED:
        stage = queries[c].index(q_slot)
        flat(stage).store(vectors[0].to(queries[c].dtype))
        fence_async_shared()
        copy_out(outs[c], [b, h, first, 0], stage)
    else:
        raw = gl.expand_dims(gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, layout)), 1)
        kept = (first + raw < M) & (lane < cfg.OUTPUTS[c][1])
        for o in gl.static_range(gl.constexpr(cfg.OUTPUTS[c][7])):
            pointer, stride_b, stride_h, stride_token = outs[cfg.OUTPUTS[c][6] + o]
            base = pointer + b.to(gl.int64) * stride_b + h.to(gl.int64) * stride_h
            base += first.to(gl.int64) * stride_token
            address = base + raw * stride_token + (cfg.OUTPUTS[c][0] + lane)
            gl.store(address, vectors[o].to(pointer.dtype.element_ty), mask=kept)
