"""What a walk of a backward is compiled for."""

from attnc.templates.hopper.gluon import aggregate, constexpr_function, gl, jit, nested, tuple_value

GROUPS = gl.constexpr(2)
"""Warpgroups of consumers."""
ROWS_OF_GROUP = gl.constexpr(64)
OUTER_BLOCK = gl.constexpr(128)


@aggregate
class Form:
    """What a walk is compiled for.

    ``OUTER_CHUNKS`` and ``INNER_CHUNKS`` are ``(tensor, lo, valid, padded)``; those inner chunks come first that early
    dot products use, ``EARLY_CHUNKS`` of them. ``HELD`` says of each inner chunk whether late sums use it. ``DOTS`` are
    ``(outer chunk, inner chunk, is first, is last)``, ``EARLY_DOTS`` of them early. ``LINE_COUNT`` numbers are read an
    inner token. ``WEIGHTS`` counts the early weights and all.

    ``SUMS`` are ``(inner chunk, weight, lanes)`` in the order of weights, ``EARLY_SUMS`` of them early; ``NUMBERS`` are
    weights that are summed as they are; ``OUTPUTS`` says where sums go, ``(tensor, lo, valid, factor)`` each, and the
    factors of numbers. ``CROSS`` is empty, or ``(weight, outer chunk, lanes)`` of a sum over the outer tokens, of whose
    tile each warpgroup has so many lanes.

    ``EAGER`` starts late dot products with the early ones. ``HIDE`` is what dot products are set to where pairs are not
    visible, 0 if the weights are masked instead; ``VANISHES`` says that late weights are 0 where what is kept is.
    """

    OVER_ROWS: gl.constexpr
    INNER_BLOCK: gl.constexpr
    STAGES: gl.constexpr
    EAGER: gl.constexpr
    LISTED: gl.constexpr
    LISTS_PER_BATCH: gl.constexpr
    LISTS_PER_HEAD: gl.constexpr
    OUTER_HEADS: tuple_value
    INNER_HEADS: tuple_value
    OUTER_CHUNKS: tuple_value
    INNER_CHUNKS: tuple_value
    HELD: tuple_value
    DOTS: tuple_value
    EARLY_DOTS: gl.constexpr
    EARLY_CHUNKS: gl.constexpr
    LINE_COUNT: gl.constexpr
    WEIGHTS: tuple_value
    VANISHES: gl.constexpr
    HIDE: gl.constexpr
    SUMS: tuple_value
    EARLY_SUMS: gl.constexpr
    NUMBERS: tuple_value
    OUTPUTS: tuple_value
    CROSS: tuple_value
    GROUP: gl.constexpr
    RANGES: gl.constexpr
    ROWS: gl.constexpr
    LINES: gl.constexpr
    VISIBLE: gl.constexpr
    EARLY: gl.constexpr
    LATE: gl.constexpr
    PAIRS: gl.constexpr
    """The layout of a tile of pairs."""

    @constexpr_function
    def __init__(
        self, OVER_ROWS, INNER_BLOCK, STAGES, EAGER, LISTED, LISTS_PER_BATCH, LISTS_PER_HEAD, OUTER_HEADS, INNER_HEADS,
        OUTER_CHUNKS, INNER_CHUNKS, HELD, DOTS, EARLY_DOTS, EARLY_CHUNKS, LINE_COUNT, WEIGHTS, VANISHES, HIDE, SUMS,
        EARLY_SUMS, NUMBERS, OUTPUTS, CROSS, GROUP, RANGES, ROWS, LINES, VISIBLE, EARLY, LATE,
    ):  # fmt: skip
        self.OVER_ROWS = gl.constexpr(OVER_ROWS)
        self.INNER_BLOCK = gl.constexpr(INNER_BLOCK)
        self.STAGES = gl.constexpr(STAGES)
        self.EAGER = gl.constexpr(EAGER)
        self.LISTED = gl.constexpr(LISTED)
        self.LISTS_PER_BATCH = gl.constexpr(LISTS_PER_BATCH)
        self.LISTS_PER_HEAD = gl.constexpr(LISTS_PER_HEAD)
        self.OUTER_HEADS = nested(OUTER_HEADS)
        self.INNER_HEADS = nested(INNER_HEADS)
        self.OUTER_CHUNKS = nested(OUTER_CHUNKS)
        self.INNER_CHUNKS = nested(INNER_CHUNKS)
        self.HELD = nested(HELD)
        self.DOTS = nested(DOTS)
        self.EARLY_DOTS = gl.constexpr(EARLY_DOTS)
        self.EARLY_CHUNKS = gl.constexpr(EARLY_CHUNKS)
        self.LINE_COUNT = gl.constexpr(LINE_COUNT)
        self.WEIGHTS = nested(WEIGHTS)
        self.VANISHES = gl.constexpr(VANISHES)
        self.HIDE = gl.constexpr(HIDE)
        self.SUMS = nested(SUMS)
        self.EARLY_SUMS = gl.constexpr(EARLY_SUMS)
        self.NUMBERS = nested(NUMBERS)
        self.OUTPUTS = nested(OUTPUTS)
        self.CROSS = nested(CROSS)
        self.GROUP = gl.constexpr(GROUP)
        self.RANGES = gl.constexpr(RANGES)
        self.ROWS = gl.constexpr(ROWS)
        self.LINES = gl.constexpr(LINES)
        self.VISIBLE = gl.constexpr(VISIBLE)
        self.EARLY = gl.constexpr(EARLY)
        self.LATE = gl.constexpr(LATE)
        self.PAIRS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, INNER_BLOCK, 16]))


@constexpr_function
def sum_layout(lanes):
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, lanes, 16])


@jit
def opaque(x):
    """``x``, as something that is computed where it is used: hoisted out of the loop it would take registers."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=gl.int32, is_pure=False, pack=1)
