"""A function of one token at a time: prologues before the walk over the keys, and outputs that mix lanes after it.

``VALUE(b, h, g, row, i, j, lane, lanes, env)`` is the result at ``lane`` (``[1, n]``) for a tile of tokens
(``[BLOCK_T, 1]``); ``lanes`` are whole ranges of lanes, of the sizes ``LANES``, to reduce over. The positions of the
side that the token is not on mean nothing.
"""

import triton
import triton.language as tl


@triton.jit
def token(
    out,
    env,
    HEADS,
    TOKENS,
    M,
    N,
    BLOCK_T: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    LANES: tl.constexpr,
    QUERY: tl.constexpr,
    PER_QUERY_HEAD: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE: tl.constexpr,
):
    """Grid: one program for each tile of tokens, head and batch row. Scalars have ``WIDTH`` 0."""
    tiles = tl.cdiv(TOKENS, BLOCK_T)
    program = tl.program_id(0)
    first = program % tiles * BLOCK_T
    h = program // tiles % HEADS
    b = program // tiles // HEADS
    if PER_QUERY_HEAD:
        g = GROUP(b, h, env)
    else:
        g = h
    raw = first + tl.arange(0, BLOCK_T)
    row = tl.minimum(raw, TOKENS - 1)[:, None]
    if QUERY:
        i = row + (N - M)
    else:
        i = row
    lanes = ()
    for width in tl.static_range(len(LANES)):
        lanes = lanes + (tl.arange(0, LANES[width])[None, :],)
    lane = tl.arange(0, PADDED)[None, :]
    value = VALUE(b, h, g, row, i, row, lane, lanes, env)
    pointer, stride_b, stride_head, stride_token = out
    base = pointer + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_head + first.to(tl.int64) * stride_token
    at = tl.arange(0, BLOCK_T)[:, None]
    exists = raw[:, None] < TOKENS
    if WIDTH == 0:
        tl.store(base + at * stride_token, value, mask=exists)
    else:
        kept = exists & (lane < WIDTH)
        tl.store(base + at * stride_token + lane, value.to(pointer.dtype.element_ty), mask=kept)
