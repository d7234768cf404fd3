"""The warp that copies: queries, and keys and values through the ring."""

from attnc.templates.hopper.config import GROUP_ROWS
from attnc.templates.hopper.gluon import constexpr_function, copy_in, gl, jit, mbarrier
from attnc.templates.hopper.schedule import place, tell, tell_tile, visited, visits


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
        copy_in(descs[c], where, barrier, rings[c].index(slot))


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
                copy_in(outers[c], where, q_full.index(q_slot), queries[c].index(q_slot))
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
