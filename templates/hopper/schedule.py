"""Which tiles a resident program works on, which inner tiles each of them visits, and how consumers are told."""

from attnc.templates.hopper.gluon import gl, jit, mbarrier
from attnc.templates.triton.segments import count_full, count_masked, disjoint, full_tile, masked_tile

FIELDS: gl.constexpr = gl.constexpr(5)
"""What consumers are told of a tile: how many inner tiles, how many of them masked, ``b``, ``h``, the first row."""


@jit
def tell(memory, at, value):
    """Producer: put a number where consumers find it, before the barrier that lets them look."""
    memory.index(at).store(gl.full([1], value, gl.int32, gl.BlockedLayout([1], [32], [1], [0])))


@jit
def told(memory, at):
    """Consumer: the number that the producer put there."""
    return gl.max(memory.index(at).load(gl.BlockedLayout([1], [32], [4], [0])), 0)


@jit
def tell_tile(board, turn, count, masked, b, h, first):
    """Producer: say what the next tile is; ``count`` 0 says that there is none."""
    memory, ready, free = board
    slot = turn & 1
    mbarrier.wait(free.index(slot), ((turn >> 1) & 1) ^ 1)
    tell(memory, slot * FIELDS, count)
    tell(memory, slot * FIELDS + 1, masked)
    tell(memory, slot * FIELDS + 2, b)
    tell(memory, slot * FIELDS + 3, h)
    tell(memory, slot * FIELDS + 4, first)
    mbarrier.arrive(ready.index(slot), count=1)


@jit
def told_place(board, turn):
    """Consumer: ``b``, ``h`` and the first row of its tile."""
    memory, ready, free = board
    base = (turn & 1) * FIELDS
    return told(memory, base + 2), told(memory, base + 3), told(memory, base + 4)


@jit
def place(cfg, tile, sizes):
    """``b``, ``h`` and the first row of a tile; late rows first, as causal masks make them long."""
    H, M, N = sizes
    tiles = gl.cdiv(M, cfg.BLOCK)
    return tile // tiles // H, tile // tiles % H, (tiles - 1 - tile % tiles) * cfg.BLOCK


@jit
def visits(cfg, b, h, first, sizes, lists, env):
    """Where the inner tiles are found, how many need the mask, and how many do not."""
    H, M, N = sizes
    if cfg.LISTED:
        full_list, masked_list, counts = lists
        tiles = gl.cdiv(M, cfg.BLOCK)
        line = first // cfg.BLOCK
        if cfg.LISTS_PER_BATCH and cfg.LISTS_PER_HEAD:
            line += (b * H + h) * tiles
        elif cfg.LISTS_PER_BATCH:
            line += b * tiles
        elif cfg.LISTS_PER_HEAD:
            line += h * tiles
        start = line.to(gl.int64) * gl.cdiv(N, cfg.INNER_BLOCK)
        source = (full_list + start, masked_list + start)
        full = gl.load(counts + line * 2)
        masked = gl.load(counts + line * 2 + 1)
    else:
        hi = gl.minimum(first + cfg.BLOCK, M) - 1 + N - M
        spans = cfg.RANGES(b, h, cfg.GROUP(b, h, env), first + N - M, hi, env)
        source = disjoint(spans, 0, N, cfg.INNER_BLOCK)
        full = count_full(source)
        masked = count_masked(source)
    return source, masked, full


@jit
def visited(cfg, source, masked, full, t):
    """The ``t``-th inner tile: those that need the mask come first. Tile 0 where there is none."""
    if cfg.LISTED:
        full_list, masked_list = source
        tile = gl.load(masked_list + t, mask=t < masked, other=0)
        tile += gl.load(full_list + (t - masked), mask=(t >= masked) & (t < masked + full), other=0)
    else:
        tile = gl.where(t < masked, masked_tile(source, t), full_tile(source, t - masked))
    return tile
