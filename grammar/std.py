"""The prelude ``std.attn``, which every spec imports without saying so."""

from __future__ import annotations

import functools
from importlib import resources

from attnc.grammar.source import Source

STD_NAME = "std.attn"


@functools.cache
def std_source() -> Source:
    """The text of the prelude."""
    return Source(STD_NAME, resources.files("attnc.grammar").joinpath(STD_NAME).read_text(encoding="utf-8"))
