"""The first 64-bit words of a call, which its threads share."""

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
