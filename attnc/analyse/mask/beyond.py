"""Whether a mask alone tells the keys there are from those past the last one."""

from __future__ import annotations

from attnc.analyse.mask.arithmetic import nonnegative
from attnc.analyse.mask.formula import All, AtLeastZero, Formula, Some, formula
from attnc.analyse.mask.linear import atom
from attnc.ir.build import index
from attnc.ir.nodes import Node


def hides_beyond(mask: Node) -> bool:
    """Whether ``mask`` is provably false where ``j > i``, and so for all ``j >= N``, since ``i < N``."""
    return _hides(formula(mask))


def _hides(f: Formula) -> bool:
    match f:
        case AtLeastZero(x=x):
            return nonnegative(atom(index("i")) - atom(index("j")) - x)
        case All(parts=parts):
            return any(map(_hides, parts))
        case Some(parts=parts):
            return bool(parts) and all(map(_hides, parts))
        case _:
            return False
