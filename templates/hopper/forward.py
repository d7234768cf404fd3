"""Attention forward on Hopper: one warp copies by TMA, groups of four warps multiply and sum; programs stay resident.

The slots and tables are those of ``attnc.templates.triton.stream``, walked over the keys. Every group of warps has 64
rows. The ring of shared memory is stepped through in lockstep: slot ``x`` holds the keys of inner tile ``x`` and the
values of tile ``x - 1``, so that ``S = Q K^T`` of a tile overlaps with ``O += P V`` of the one before.
"""

from attnc.templates.hopper.gluon import (
    aggregate,
    constexpr_function,
    fence_async_shared,
    gl,
    jit,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from attnc.templates.hopper.schedule import FIELDS, place, tell, tell_tile, told, told_place, visited, visits

GROUP_ROWS: gl.constexpr = gl.constexpr(64)
"""Rows of a group of four warps."""
LANES: gl.constexpr = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16]))
"""Of sums that each thread keeps for itself, ``[GROUP_ROWS, 8]``."""


@aggregate
class Config:
    """The compile-time arguments of :func:`forward`."""

    BLOCK: gl.constexpr
    INNER_BLOCK: gl.constexpr
    WARPGROUPS: gl.constexpr
    STAGES: gl.constexpr
    QUERIES: gl.constexpr
    MASKS: gl.constexpr
    LISTED: gl.constexpr
    LISTS_PER_BATCH: gl.constexpr
    LISTS_PER_HEAD: gl.constexpr
    OUTER_HEADS: gl.constexpr
    INNER_HEADS: gl.constexpr
    OUTER_WIDTHS: gl.constexpr
    WIDTHS: gl.constexpr
    VALUES: gl.constexpr
    DOTS: gl.constexpr
    SUMS: gl.constexpr
    STARTS: gl.constexpr
    SPREAD: gl.constexpr
    OUTPUTS: gl.constexpr
    STAGED: gl.constexpr
    GROUP: gl.constexpr
    RANGES: gl.constexpr
    ROW_READS: gl.constexpr
    VISIBLE: gl.constexpr
    STEP: gl.constexpr
    FINISH: gl.constexpr
    FINISH_ROWS: gl.constexpr
    scores: gl.constexpr

    @constexpr_function
    def __init__(
        self, INNER_BLOCK, WARPGROUPS, STAGES, QUERIES, MASKS, LISTED, LISTS_PER_BATCH, LISTS_PER_HEAD, OUTER_HEADS,
        INNER_HEADS, OUTER_WIDTHS, WIDTHS, VALUES, DOTS, SUMS, STARTS, SPREAD, OUTPUTS, STAGED, GROUP, RANGES,
        ROW_READS, VISIBLE, STEP, FINISH,
        FINISH_ROWS,
    ):  # fmt: skip
        self.BLOCK = gl.constexpr(64 * WARPGROUPS)
        self.INNER_BLOCK = gl.constexpr(INNER_BLOCK)
        self.WARPGROUPS = gl.constexpr(WARPGROUPS)
        self.STAGES = gl.constexpr(STAGES)
        self.QUERIES = gl.constexpr(QUERIES)
        self.MASKS = gl.constexpr(MASKS)
        self.LISTED = gl.constexpr(LISTED)
        self.LISTS_PER_BATCH = gl.constexpr(LISTS_PER_BATCH)
        self.LISTS_PER_HEAD = gl.constexpr(LISTS_PER_HEAD)
        self.OUTER_HEADS = gl.constexpr(OUTER_HEADS)
        self.INNER_HEADS = gl.constexpr(INNER_HEADS)
        self.OUTER_WIDTHS = gl.constexpr(OUTER_WIDTHS)
        self.WIDTHS = gl.constexpr(WIDTHS)
        self.VALUES = gl.constexpr(VALUES)
        self.DOTS = gl.constexpr(DOTS)
        self.SUMS = gl.constexpr(SUMS)
        self.STARTS = gl.constexpr(STARTS)
        self.SPREAD = gl.constexpr(SPREAD)
        self.OUTPUTS = gl.constexpr(OUTPUTS)
        self.STAGED = gl.constexpr(STAGED)
        self.GROUP = gl.constexpr(GROUP)
        self.RANGES = gl.constexpr(RANGES)
        self.ROW_READS = gl.constexpr(ROW_READS)
        self.VISIBLE = gl.constexpr(VISIBLE)
        self.STEP = gl.constexpr(STEP)
        self.FINISH = gl.constexpr(FINISH)
        self.FINISH_ROWS = gl.constexpr(FINISH_ROWS)
        self.scores = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, INNER_BLOCK, 16]))


@constexpr_function
def sums_layout(width):
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])


# Registers


@jit
def opaque(x):
    """``x`` as something that is not moved out of loops: what is computed from it does not occupy registers."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)


@jit
def halved(x, element: gl.constexpr):
    """``x`` in 16 bits, here and now: LLVM would carry 32 bits into the next step and convert amid its products."""
    if element == gl.bfloat16:
        half = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=gl.bfloat16, is_pure=False, pack=2
        )
    else:
        half = gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=gl.float16, is_pure=False, pack=2
        )
    return half


@constexpr_function
def scaling(n):
    """``n`` products, skipped by a warp in which all factors are 1; a thread has two rows, so two factors."""
    text = f"{{ .reg .pred p, q; setp.neu.f32 p, ${2 * n}, 0f3F800000; "
    text += f"setp.neu.or.f32 p, ${2 * n + 2}, 0f3F800000, p; "
    text += "vote.sync.any.pred q, p, 0xffffffff; @!q bra.uni SKIP; "
    text += "".join(f"mul.f32 ${k}, ${k}, ${2 * n + k}; " for k in range(n)) + "SKIP: }"
    return text, ",".join(["=&f"] * n + [str(k) for k in range(n)] + ["f"] * n)


@jit
def scaled(total, factor):
    """``total * factor`` by row."""
    pack: gl.constexpr = total.shape[1] // 2
    by_row = gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, total.type.layout)), 1)
    text: gl.constexpr = scaling(pack)
    total, by_row = gl.broadcast(total, by_row)
    return gl.inline_asm_elementwise(text[0], text[1], [total, by_row], dtype=gl.float32, is_pure=False, pack=pack)


# Copies


@jit
def memory(descs, COUNT: gl.constexpr):
    """Shared memory for ``COUNT`` copies of each descriptor."""
    rooms = ()
    for c in gl.static_range(len(descs)):
        room = gl.allocate_shared_memory(descs[c].dtype, [COUNT] + descs[c].block_type.shape, descs[c].layout)
        rooms = rooms + (room,)
    return rooms


@jit
def copy_inner(cfg, descs, rings, FIRST: gl.constexpr, LAST: gl.constexpr, b, h, g, tile, barrier, slot):
    """The chunks ``FIRST..LAST`` of an inner tile into a slot of the ring."""
    for c in gl.static_range(FIRST, LAST):
        head = h if cfg.INNER_HEADS[c] else g
        where = [b, head, tile * cfg.INNER_BLOCK, 0]
        tma.async_copy_global_to_shared(descs[c], where, barrier, rings[c].index(slot))


@jit
def produce(cfg, outers, inners, queries, rings, bars, board, counter, lists, env, sizes, B):
    """The warp that copies: the queries of a tile, and its inner tiles through the ring."""
    q_full, q_empty, full, empty, inner_at = bars
    key_bytes: gl.constexpr = chunk_bytes(cfg.WIDTHS, 0, cfg.VALUES, cfg.INNER_BLOCK)
    value_bytes: gl.constexpr = chunk_bytes(cfg.WIDTHS, cfg.VALUES, len(cfg.WIDTHS), cfg.INNER_BLOCK)
    query_bytes: gl.constexpr = chunk_bytes(cfg.OUTER_WIDTHS, 0, len(cfg.OUTER_WIDTHS), GROUP_ROWS)
    tiles = gl.cdiv(sizes[1], cfg.BLOCK) * sizes[0] * B
    it = 0
    turn = 0
    tile = gl.program_id(0)
    while tile < tiles:
        b, h, first = place(cfg, tile, sizes)
        g = cfg.GROUP(b, h, env)
        source, masked, unmasked = visits(cfg, b, h, first, sizes, lists, env)
        count = gl.maximum(masked + unmasked, 1)
        tell_tile(board, turn, count, masked, b, h, first)
        inner = visited(cfg, source, masked, unmasked, 0)
        slot = it % cfg.STAGES
        mbarrier.wait(empty.index(slot), ((it // cfg.STAGES) & 1) ^ 1)
        mbarrier.expect(full.index(slot), key_bytes)
        copy_inner(cfg, inners, rings, 0, cfg.VALUES, b, h, g, inner, full.index(slot), slot)
        tell(inner_at, slot, inner)
        mbarrier.arrive(full.index(slot), count=1)
        it += 1
        for w in gl.static_range(cfg.WARPGROUPS):
            q_slot = turn % cfg.QUERIES * cfg.WARPGROUPS + w
            mbarrier.wait(q_empty.index(q_slot), ((turn // cfg.QUERIES) & 1) ^ 1)
            mbarrier.expect(q_full.index(q_slot), query_bytes)
            for c in gl.static_range(len(outers)):
                head = h if cfg.OUTER_HEADS[c] else g
                where = [b, head, first + w * GROUP_ROWS, 0]
                tma.async_copy_global_to_shared(outers[c], where, q_full.index(q_slot), queries[c].index(q_slot))
        for t in range(1, count):
            before = inner
            inner = visited(cfg, source, masked, unmasked, t)
            slot = it % cfg.STAGES
            mbarrier.wait(empty.index(slot), ((it // cfg.STAGES) & 1) ^ 1)
            mbarrier.expect(full.index(slot), key_bytes + value_bytes)
            copy_inner(cfg, inners, rings, 0, cfg.VALUES, b, h, g, inner, full.index(slot), slot)
            copy_inner(cfg, inners, rings, cfg.VALUES, len(cfg.WIDTHS), b, h, g, before, full.index(slot), slot)
            tell(inner_at, slot, inner)
            mbarrier.arrive(full.index(slot), count=1)
            it += 1
        tile = gl.atomic_add(counter, 1, sem="relaxed") + gl.num_programs(0)
        slot = it % cfg.STAGES
        mbarrier.wait(empty.index(slot), ((it // cfg.STAGES) & 1) ^ 1)
        mbarrier.expect(full.index(slot), value_bytes)
        copy_inner(cfg, inners, rings, cfg.VALUES, len(cfg.WIDTHS), b, h, g, inner, full.index(slot), slot)
        mbarrier.arrive(full.index(slot), count=1)
        it += 1
        turn += 1
    tell_tile(board, turn, 0, 0, 0, 0, 0)


@constexpr_function
def chunk_bytes(widths, first, last, rows):
    return sum(2 * width * rows for width in widths[first:last])


# Products


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
    inside = gl.expand_dims(first_key + raw < N, 0)
    if MASKED:
        j = gl.expand_dims(gl.minimum(first_key + raw, N - 1), 0)
    else:
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
        small = small + (gl.convert_layout(halved(weights[w], element), gl.DotOperandLayout(0, cfg.scores, 2)),)
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


@jit
def zeros(WIDTH: gl.constexpr):
    return gl.zeros([GROUP_ROWS, WIDTH], gl.float32, sums_layout(WIDTH))


@jit
def initial(cfg):
    """States and sums before the first key."""
    state = ()
    for s in gl.static_range(len(cfg.STARTS)):
        if cfg.SPREAD[s]:
            state = state + (gl.full([GROUP_ROWS, 8], cfg.STARTS[s], gl.float32, LANES),)
        else:
            state = state + (gl.full([GROUP_ROWS], cfg.STARTS[s], gl.float32, gl.SliceLayout(1, cfg.scores)),)
    sums = ()
    for s in gl.static_range(len(cfg.SUMS)):
        sums = sums + (zeros(cfg.WIDTHS[cfg.SUMS[s][0]]),)
    return state, sums


@jit
def gathered(cfg, state, layout: gl.constexpr):
    """The states as ``[GROUP_ROWS]`` of a layout."""
    whole = ()
    for s in gl.static_range(len(cfg.STARTS)):
        if cfg.SPREAD[s]:
            whole = whole + (gl.convert_layout(gl.sum(state[s], 1), layout),)
        else:
            whole = whole + (gl.convert_layout(state[s], layout),)
    return whole


@jit
def positions(first, layout: gl.constexpr, sizes):
    """``row, i`` of the rows of a group, those beyond the last as the last."""
    H, M, N = sizes
    row = gl.minimum(first + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, layout)), M - 1)
    row = gl.expand_dims(row, 1)
    return row, row + (N - M)


@jit
def consume(cfg, W: gl.constexpr, element: gl.constexpr, queries, rings, bars, board, outs, row_outs, env, sizes):
    """A group of warps: 64 rows of every tile, from scores to outputs."""
    q_full, q_empty, full, empty, inner_at = bars
    memory, ready, free = board
    it = 0
    turn = 0
    mbarrier.wait(ready.index(0), 0)
    count = told(memory, 0)
    while count > 0:
        b, h, first = told_place(board, turn)
        masked = told(memory, (turn & 1) * FIELDS + 1)
        row, i = positions(first + W * GROUP_ROWS, cfg.scores, sizes)
        rows = cfg.ROW_READS(b, h, cfg.GROUP(b, h, env), row, i, i, env)
        state, sums = initial(cfg)
        q_slot = turn % cfg.QUERIES * cfg.WARPGROUPS + W
        q = ()
        for c in gl.static_range(len(queries)):
            q = q + (flat(queries[c].index(q_slot)),)

        mbarrier.wait(q_full.index(q_slot), (turn // cfg.QUERIES) & 1)
        slot = it % cfg.STAGES
        mbarrier.wait(full.index(slot), (it // cfg.STAGES) & 1)
        dots = start_scores(cfg, q, rings, slot)
        if cfg.STAGED and cfg.QUERIES == 2:
            # the outputs of the tile before have left its buffer by now
            tma.store_wait(0)
            mbarrier.arrive(q_empty.index((turn + 1) % 2 * cfg.WARPGROUPS + W), count=1, pred=turn > 0)
        dots = wait_for(dots, 0)
        inner = told(inner_at, slot)
        mbarrier.arrive(empty.index(slot), count=1)
        state, factors, weights = pairs(cfg, dots, rows, b, h, i, inner, state, env, sizes, element, True)
        it += 1
        mbarrier.wait(full.index(it % cfg.STAGES), (it // cfg.STAGES) & 1)
        if cfg.MASKS:
            for _ in range(1, masked):
                it, state, sums, factors, weights = step(
                    cfg, True, q, rings, bars, rows, b, h, i, it, state, sums, factors, weights, env, sizes, element
                )  # fmt: skip
        for _ in range(gl.maximum(masked, 1), count):
            it, state, sums, factors, weights = step(
                cfg, False, q, rings, bars, rows, b, h, i, it, state, sums, factors, weights, env, sizes, element
            )  # fmt: skip
        slot = it % cfg.STAGES
        sums = wait_for(start_sums(cfg, sums, factors, weights, rings, slot), 0)
        mbarrier.arrive(empty.index(slot), count=1)
        it += 1

        b, h, first = told_place(board, turn)
        first += W * GROUP_ROWS
        write_rows(cfg, state, row_outs, b, h, first, env, sizes)
        for c in gl.static_range(len(cfg.OUTPUTS)):
            write_lanes(cfg, c, cfg.OUTPUTS[c][2], sums, state, queries, q_slot, outs, b, h, first, env, sizes)
        if not cfg.STAGED:
            mbarrier.arrive(q_empty.index(q_slot), count=1)
        elif cfg.QUERIES == 1:
            tma.store_wait(0)
            mbarrier.arrive(q_empty.index(q_slot), count=1)
        mbarrier.arrive(free.index(turn & 1), count=1)
        turn += 1
        mbarrier.wait(ready.index(turn & 1), (turn >> 1) & 1)
        count = told(memory, (turn & 1) * FIELDS)
    tma.store_wait(0)


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
        tma.async_copy_shared_to_global(outs[c], [b, h, first, 0], stage)
    else:
        raw = gl.expand_dims(gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, layout)), 1)
        kept = (first + raw < M) & (lane < cfg.OUTPUTS[c][1])
        for o in gl.static_range(gl.constexpr(cfg.OUTPUTS[c][7])):
            pointer, stride_b, stride_h, stride_token = outs[cfg.OUTPUTS[c][6] + o]
            base = pointer + b.to(gl.int64) * stride_b + h.to(gl.int64) * stride_h
            base += first.to(gl.int64) * stride_token
            address = base + raw * stride_token + (cfg.OUTPUTS[c][0] + lane)
            gl.store(address, vectors[o].to(pointer.dtype.element_ty), mask=kept)


@jit
def forward(
    outers, inners, outs, row_outs, lists, env, counter, B, H, M, N,
    INNER_BLOCK: gl.constexpr,
    WARPGROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    QUERIES: gl.constexpr,
    REGISTERS: gl.constexpr,
    MASKS: gl.constexpr,
    LISTED: gl.constexpr,
    LISTS_PER_BATCH: gl.constexpr,
    LISTS_PER_HEAD: gl.constexpr,
    OUTER_HEADS: gl.constexpr,
    INNER_HEADS: gl.constexpr,
    OUTER_WIDTHS: gl.constexpr,
    WIDTHS: gl.constexpr,
    VALUES: gl.constexpr,
    DOTS: gl.constexpr,
    SUMS: gl.constexpr,
    STARTS: gl.constexpr,
    SPREAD: gl.constexpr,
    OUTPUTS: gl.constexpr,
    STAGED: gl.constexpr,
    GROUP: gl.constexpr,
    RANGES: gl.constexpr,
    ROWS: gl.constexpr,
    VISIBLE: gl.constexpr,
    STEP: gl.constexpr,
    FINISH: gl.constexpr,
    FINISH_ROWS: gl.constexpr,
):  # fmt: skip
    """Grid: at most one program for each multiprocessor. ``outers``, ``inners`` are descriptors, one a chunk."""
    cfg = Config(
        INNER_BLOCK, WARPGROUPS, STAGES, QUERIES, MASKS, LISTED, LISTS_PER_BATCH, LISTS_PER_HEAD, OUTER_HEADS,
        INNER_HEADS, OUTER_WIDTHS, WIDTHS, VALUES, DOTS, SUMS, STARTS, SPREAD, OUTPUTS, STAGED, GROUP, RANGES,
        ROWS, VISIBLE, STEP, FINISH,
        FINISH_ROWS,
    )  # fmt: skip
    element: gl.constexpr = outers[0].dtype
    queries = memory(outers, QUERIES * WARPGROUPS)
    rings = memory(inners, STAGES)
    q_full = gl.allocate_shared_memory(gl.int64, [QUERIES * WARPGROUPS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [QUERIES * WARPGROUPS, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for w in gl.static_range(QUERIES * WARPGROUPS):
        mbarrier.init(q_full.index(w), count=1)
        mbarrier.init(q_empty.index(w), count=1)
    for s in gl.static_range(STAGES):
        mbarrier.init(full.index(s), count=2)
        mbarrier.init(empty.index(s), count=WARPGROUPS)
    inner_at = gl.allocate_shared_memory(gl.int32, [STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    told_of = gl.allocate_shared_memory(gl.int32, [2 * FIELDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(2):
        mbarrier.init(ready.index(s), count=1)
        mbarrier.init(free.index(s), count=WARPGROUPS)
    board = (told_of, ready, free)
    bars = (q_full, q_empty, full, empty, inner_at)
    sizes = (H, M, N)
    if WARPGROUPS == 1:
        gl.warp_specialize(
            [
                (consume, (cfg, 0, element, queries, rings, bars, board, outs, row_outs, env, sizes)),
                (produce, (cfg, outers, inners, queries, rings, bars, board, counter, lists, env, sizes, B)),
            ],
            [1],
            [REGISTERS[0]],
        )
    elif WARPGROUPS == 2:
        gl.warp_specialize(
            [
                (consume, (cfg, 0, element, queries, rings, bars, board, outs, row_outs, env, sizes)),
                (consume, (cfg, 1, element, queries, rings, bars, board, outs, row_outs, env, sizes)),
                (produce, (cfg, outers, inners, queries, rings, bars, board, counter, lists, env, sizes, B)),
            ],
            [4, 1],
            [REGISTERS[1], REGISTERS[0]],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (cfg, 0, element, queries, rings, bars, board, outs, row_outs, env, sizes)),
                (consume, (cfg, 1, element, queries, rings, bars, board, outs, row_outs, env, sizes)),
                (consume, (cfg, 2, element, queries, rings, bars, board, outs, row_outs, env, sizes)),
                (produce, (cfg, outers, inners, queries, rings, bars, board, counter, lists, env, sizes, B)),
            ],
            [4, 4, 1],
            [REGISTERS[1], REGISTERS[1], REGISTERS[0]],
        )
