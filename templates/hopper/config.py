"""What a kernel is compiled for, and the layouts that follow from it."""

from attnc.templates.hopper.gluon import aggregate, constexpr_function, gl

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
    CLAMPED: gl.constexpr
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
        self, INNER_BLOCK, WARPGROUPS, STAGES, QUERIES, MASKS, CLAMPED, LISTED, LISTS_PER_BATCH, LISTS_PER_HEAD,
        OUTER_HEADS, INNER_HEADS, OUTER_WIDTHS, WIDTHS, VALUES, DOTS, SUMS, STARTS, SPREAD, OUTPUTS, STAGED, GROUP,
        RANGES, ROW_READS, VISIBLE, STEP, FINISH, FINISH_ROWS,
    ):  # fmt: skip
        self.BLOCK = gl.constexpr(64 * WARPGROUPS)
        self.INNER_BLOCK = gl.constexpr(INNER_BLOCK)
        self.WARPGROUPS = gl.constexpr(WARPGROUPS)
        self.STAGES = gl.constexpr(STAGES)
        self.QUERIES = gl.constexpr(QUERIES)
        self.MASKS = gl.constexpr(MASKS)
        self.CLAMPED = gl.constexpr(CLAMPED)
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
