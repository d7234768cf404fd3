"""Matrix products of a group of warps, and what happens to scores between them."""

from attnc.templates.hopper.config import GROUP_ROWS
from attnc.templates.hopper.gluon import gl, jit, mbarrier, warpgroup_mma, warpgroup_mma_wait
from attnc.templates.hopper.rows import halved, opaque, scaled
from attnc.templates.hopper.schedule import told


@jit
def flat(memory):
    """Shared memory of a box as a matrix of tokens and lanes."""
    return memory.reshape([memory.shape[2], memory.shape[3]])


@jit
def start_scores(cfg, q, rings, slot):
    """Begin the dot products over the pairs of a tile, ``[GROUP_ROWS, INNER_BLOCK]`` each."""
    dots = ()
    for x in gl.static_range(len(cfg.DOTS)):
        k = flat(rings[cfg.DOTS[x][1]].index(slot)).permute((1, 0))
        if cfg.DOTS[x][2]:
            dot = gl.zeros([GROUP_ROWS, cfg.INNER_BLOCK], gl.float32, cfg.scores)
            dot = warpgroup_mma(q[cfg.DOTS[x][0]], k, dot, use_acc=False, is_async=True)
        else:
            dot = warpgroup_mma(q[cfg.DOTS[x][0]], k, dot, is_async=True)
        if cfg.DOTS[x][3]:
            dots = dots + (dot,)
    return dots


@jit
def start_sums(cfg, sums, factors, weights, rings, slot):
    """Rescale the sums and begin to add the products of weights and values."""
    new_sums = ()
    for s in gl.static_range(len(cfg.SUMS)):
        total = sums[s]
        if cfg.SUMS[s][2] >= 0:
            total = scaled(total, factors[cfg.SUMS[s][2]])
        weight = gl.convert_layout(weights[cfg.SUMS[s][1]], gl.DotOperandLayout(0, total.type.layout, 2))
        v = flat(rings[cfg.SUMS[s][0]].index(slot))
        new_sums = new_sums + (warpgroup_mma(weight, v, total, is_async=True),)
    return new_sums


@jit
def wait_for(started, OUTSTANDING: gl.constexpr):
    """The values of products that were begun, when all but the ``OUTSTANDING`` last are done."""
    if len(started) == 1:
        done = (warpgroup_mma_wait(OUTSTANDING, deps=started),)
    else:
        done = warpgroup_mma_wait(OUTSTANDING, deps=started)
    return done


@jit
def pairs(cfg, dots, rows, b, h, i, inner, state, env, sizes, element: gl.constexpr, MASKED: gl.constexpr):
    """State, factors and weights after an inner tile."""
    H, M, N = sizes
    first_key = inner * cfg.INNER_BLOCK
    raw = gl.arange(0, cfg.INNER_BLOCK, gl.SliceLayout(0, cfg.scores))
    if MASKED and cfg.CLAMPED:
        inside = gl.expand_dims(first_key + raw < N, 0)
        j = gl.expand_dims(gl.minimum(first_key + raw, N - 1), 0)
    else:
        inside = gl.expand_dims(raw == raw, 0)
        j = gl.expand_dims(first_key + raw, 0)
    i = opaque(i)
    row = i - (N - M)
    g = cfg.GROUP(b, h, env)
    visible = inside
    if MASKED:
        visible = cfg.VISIBLE(inside, dots, rows, b, h, g, row, i, j, env)
    state, factors, weights = cfg.STEP(dots, visible, rows, b, h, g, row, i, j, state, env, MASKED)
    small = ()
    for w in gl.static_range(len(weights)):
        small = small + (
            gl.convert_layout(halved(weights[w], element, len(cfg.STARTS) == 0), gl.DotOperandLayout(0, cfg.scores, 2)),
        )
    return state, factors, small


@jit
def step(
    cfg, MASKED: gl.constexpr, q, rings, bars, rows, b, h, i, it, state, sums, factors, weights, env, sizes,
    element: gl.constexpr,
):  # fmt: skip
    """Scores of an inner tile while the weights of the one before meet its values. Its slot was waited for."""
    q_full, q_empty, full, empty, inner_at = bars
    slot = it % cfg.STAGES
    dots = start_scores(cfg, q, rings, slot)
    sums = start_sums(cfg, sums, factors, weights, rings, slot)
    dots = wait_for(dots, len(cfg.SUMS))
    inner = told(inner_at, slot)
    state, factors, weights = pairs(cfg, dots, rows, b, h, i, inner, state, env, sizes, element, MASKED)
    it += 1
    # Waiting is a loop, and so a border of basic blocks: ptxas would wait for the products before the exponentials.
    mbarrier.wait(full.index(it % cfg.STAGES), (it // cfg.STAGES) & 1)
    sums = wait_for(sums, 0)
    mbarrier.arrive(empty.index(slot), count=1)
    return it, state, sums, factors, weights
