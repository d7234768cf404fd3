"""Which tiles along the inner axis a tile of the outer axis visits, as disjoint runs of tile indices."""

import triton
import triton.language as tl


@triton.jit
def in_tiles(span, origin, COUNT, BLOCK: tl.constexpr):
    """A range of positions as tile indices ``(first, full_first, full_end, end)`` that ascend.

    ``origin`` is the position of the first of the ``COUNT`` tokens; the range is clipped to them.
    """
    lo = tl.minimum(tl.maximum(span[0] - origin, 0), COUNT).to(tl.int32)
    hi = tl.minimum(tl.maximum(span[1] - origin, 0), COUNT).to(tl.int32)
    full_lo = tl.minimum(tl.maximum(span[2] - origin, lo), COUNT).to(tl.int32)
    full_hi = tl.minimum(tl.maximum(span[3] - origin, lo), hi).to(tl.int32)
    first = lo // BLOCK
    end = tl.where(hi > lo, (hi + BLOCK - 1) // BLOCK, first)
    full_first = tl.minimum((full_lo + BLOCK - 1) // BLOCK, end)
    full_end = tl.maximum(full_hi // BLOCK, full_first)
    return first, full_first, full_end, end


@triton.jit
def in_order(runs, LATER: tl.constexpr, AT: tl.constexpr):
    """``runs`` with members ``AT`` and ``LATER`` swapped if that one starts first."""
    a = runs[AT]
    b = runs[LATER]
    swap = b[0] < a[0]
    ordered = ()
    for r in tl.static_range(len(runs)):
        if r == AT:
            run = (
                tl.where(swap, b[0], a[0]),
                tl.where(swap, b[1], a[1]),
                tl.where(swap, b[2], a[2]),
                tl.where(swap, b[3], a[3]),
            )
        elif r == LATER:
            run = (
                tl.where(swap, a[0], b[0]),
                tl.where(swap, a[1], b[1]),
                tl.where(swap, a[2], b[2]),
                tl.where(swap, a[3], b[3]),
            )
        else:
            run = runs[r]
        ordered = ordered + (run,)
    return ordered


@triton.jit
def disjoint(spans, origin, COUNT, BLOCK: tl.constexpr):
    """Ranges of positions, overlapping and in any order, as ascending runs of tiles without a common tile."""
    runs = ()
    for r in tl.static_range(len(spans)):
        runs = runs + (in_tiles(spans[r], origin, COUNT, BLOCK),)
    for a in tl.static_range(len(spans)):
        for b in tl.static_range(a + 1, len(spans)):
            runs = in_order(runs, b, a)
    apart = ()
    done = COUNT * 0
    for r in tl.static_range(len(spans)):
        first, full_first, full_end, end = runs[r]
        first = tl.maximum(first, done)
        end = tl.maximum(end, first)
        full_first = tl.minimum(tl.maximum(full_first, first), end)
        full_end = tl.minimum(tl.maximum(full_end, full_first), end)
        apart = apart + ((first, full_first, full_end, end),)
        done = end
    return apart


@triton.jit
def count_full(runs):
    """How many tiles of the runs need no mask."""
    count = 0
    for r in tl.static_range(len(runs)):
        count += runs[r][2] - runs[r][1]
    return count


@triton.jit
def count_masked(runs):
    """How many tiles of the runs need the mask."""
    count = 0
    for r in tl.static_range(len(runs)):
        count += runs[r][1] - runs[r][0] + runs[r][3] - runs[r][2]
    return count


@triton.jit
def full_tile(runs, t):
    """The index of the ``t``-th tile that needs no mask."""
    tile = runs[0][1] + t
    for r in tl.static_range(1, len(runs)):
        t -= runs[r - 1][2] - runs[r - 1][1]
        tile = tl.where(t >= 0, runs[r][1] + t, tile)
    return tile


@triton.jit
def masked_tile(runs, t):
    """The index of the ``t``-th tile that needs the mask."""
    tile = t
    for r in tl.static_range(len(runs)):
        first, full_first, full_end, end = runs[r]
        head = full_first - first
        tile = tl.where(t >= 0, tl.where(t < head, first + t, full_end + t - head), tile)
        t -= head + end - full_end
    return tile


@triton.jit
def all_masked(runs):
    """The same runs, every tile of which needs the mask."""
    masked = ()
    for r in tl.static_range(len(runs)):
        masked = masked + ((runs[r][0], runs[r][3], runs[r][3], runs[r][3]),)
    return masked
