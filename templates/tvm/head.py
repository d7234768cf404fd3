"""What a kernel and its caller agree on: the first 64-bit words of a call, and how heads are parted."""

NEXT_TASK = 0
"""A counter from 0: which task nobody has taken yet."""
NEXT_THREAD = 1
"""A counter from 0: how many threads came."""
PHASE = 2
"""Which of the kernel's parallel loops is to run."""
SCRATCH = 3
"""Address of scratch memory."""
ROOM = 4
"""Bytes of it that each thread has."""
HEAD = 5
"""How many words there are."""

TASKS = 32


def parts_of(heads: int) -> int:
    """How many parts each of ``B * H`` heads has where threads share heads: so many that there are 32 tasks, about."""
    return max(1, TASKS // max(1, heads))


FEW = 8
"""The most rows that count as few: beyond, full tiles are cheaper even where half of their rows are missing."""
SHARE = 512
"""The fewest keys that are worth a task of their own."""


def key_parts_of(heads: int, rows: int, keys: int) -> int:
    """How many parts the keys of each of ``B * H`` heads are dealt in where there are few rows, as in decoding."""
    return max(1, min(TASKS // max(1, heads), keys // SHARE)) if rows <= FEW else 1
