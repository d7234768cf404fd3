"""Registers of a group of warps: states, sums and positions of its 64 rows."""

from attnc.templates.hopper.config import GROUP_ROWS, LANES, sums_layout
from attnc.templates.hopper.gluon import constexpr_function, gl, jit


@jit
def opaque(x):
    """``x`` as something that is not moved out of loops: what is computed from it does not occupy registers."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)


@constexpr_function
def halving(n, type, HOLD):
    """``n`` floats as pairs of 16 bits. ``HOLD`` adds a branch that needs all of them: a sleep that is never slept."""
    half = n // 2
    text = "".join(f"cvt.rn.{type}x2.f32 ${k}, ${half + 2 * k + 1}, ${half + 2 * k}; " for k in range(half))
    if HOLD:
        text += ".reg .b32 a; .reg .pred p; mov.b32 a, 0; "
        text += "".join(f"lop3.b32 a, a, ${k}, ${min(k + 1, half - 1)}, 0x96; " for k in range(0, half, 2))
        text += "setp.eq.u32 p, a, 0x7fc1ffc1; @p nanosleep.u32 0; "
    return f"{{ {text}}}", ",".join(["=&r"] * half + ["f"] * n)


@jit
def halved(x, element: gl.constexpr, HOLD: gl.constexpr):
    """``x`` in 16 bits, here and now: LLVM would carry 32 bits into the next step and convert amid its products.

    Without statistics no branch needs the weights before the wait for the products, and ptxas would put some off until
    after it: ``HOLD`` prevents that.
    """
    pack: gl.constexpr = x.shape[0] * x.shape[1] // 128 if HOLD else 2
    if element == gl.bfloat16:
        text: gl.constexpr = halving(pack, "bf16", HOLD)
        half = gl.inline_asm_elementwise(text[0], text[1], [x], dtype=gl.bfloat16, is_pure=False, pack=pack)
    else:
        text: gl.constexpr = halving(pack, "f16", HOLD)
        half = gl.inline_asm_elementwise(text[0], text[1], [x], dtype=gl.float16, is_pure=False, pack=pack)
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
