"""Calls of like sizes: one function for the tuner and the run time, so that what was tuned is what is applied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

VERSION = 1
"""Raised when :func:`bucket_of` changes; it is part of every key."""


class Bucket(NamedTuple):
    """Calls that share a config: ``B * H`` up to ``8**heads``, M up to ``4**rows``, N up to ``4**keys``, and H / G."""

    heads: int
    rows: int
    keys: int
    ratio: int


NO_SIZES = Bucket(0, 0, 0, 0)
"""Where sizes are not known: kernels compiled ahead of time."""


def bucket_of(sizes: Mapping[str, int]) -> Bucket:
    """The bucket of a call with sizes ``B H G M N``; borders belong to the lower bucket."""
    if not sizes:
        return NO_SIZES
    heads = -(-(sizes["B"] * sizes["H"] - 1).bit_length() // 3)
    rows, keys = -(-(sizes["M"] - 1).bit_length() // 2), -(-(sizes["N"] - 1).bit_length() // 2)
    return Bucket(heads, rows, keys, sizes["H"] // (sizes["G"] or 1))
