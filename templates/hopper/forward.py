"""Attention forward on Hopper: one warp copies by TMA, groups of four warps multiply and sum; programs stay resident.

The slots and tables are those of ``attnc.templates.triton.stream``, walked over the keys. Every group of warps has 64
rows. The ring of shared memory is stepped through in lockstep: slot ``x`` holds the keys of inner tile ``x`` and the
values of tile ``x - 1``, so that ``S = Q K^T`` of a tile overlaps with ``O += P V`` of the one before.
"""

from attnc.templates.hopper.config import GROUP_ROWS, Config
from attnc.templates.hopper.copies import memory, produce
from attnc.templates.hopper.finish import write_lanes, write_rows
from attnc.templates.hopper.gluon import copies_out_done, gl, jit, mbarrier
from attnc.templates.hopper.products import flat, pairs, start_scores, start_sums, step, wait_for
from attnc.templates.hopper.rows import initial, positions
from attnc.templates.hopper.schedule import FIELDS, told, told_place


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
            copies_out_done(0)
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
            copies_out_done(0)
            mbarrier.arrive(q_empty.index(q_slot), count=1)
        mbarrier.arrive(free.index(turn & 1), count=1)
        turn += 1
        mbarrier.wait(ready.index(turn & 1), (turn >> 1) & 1)
        count = told(memory, (turn & 1) * FIELDS)
    copies_out_done(0)


@jit
def forward(
    outers, inners, outs, row_outs, lists, env, counter, B, H, M, N,
    INNER_BLOCK: gl.constexpr,
    WARPGROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    QUERIES: gl.constexpr,
    REGISTERS: gl.constexpr,
    MASKS: gl.constexpr,
    CLAMPED: gl.constexpr,
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
        INNER_BLOCK, WARPGROUPS, STAGES, QUERIES, MASKS, CLAMPED, LISTED, LISTS_PER_BATCH, LISTS_PER_HEAD, OUTER_HEADS,
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
