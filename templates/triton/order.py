"""In what order the tiles of a walk are taken: the longest first, of a few heads at a time.

A causal mask makes tiles of one head as unlike as 1 to their number. Taken head by head, the long ones of the last head
begin when the others are nearly done; taken by length over all heads, no two programs that run together would read
what the other reads. So heads are taken in spans whose vectors fit the cache of the device together.
"""

import triton
import triton.language as tl


@triton.jit
def place(program, tiles, heads, count, span):
    """Tile, head and batch row of a program; ``count`` is of the heads of all batch rows, ``span`` of those of a span.

    Tiles are counted from the longest.
    """
    first = program // (tiles * span) * span
    within = program % (tiles * span)
    width = tl.minimum(span, count - first)
    one = first + within % width
    return within // width, one % heads, one // heads


@triton.jit
def span_of(inner_count, TOKENS: tl.constexpr):
    """How many heads the cache holds, of ``TOKENS`` inner tokens in all."""
    return tl.maximum(TOKENS // tl.maximum(inner_count, 1), 1)
