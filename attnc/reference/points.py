"""Where expressions are evaluated: lists of ``(b, h, row, j)``.

The reference computes nothing that does not exist. A body is evaluated at its visible pairs, at the rows that see
some key and at the keys that some row sees, so that what a formula would do elsewhere (``log`` of a negative number,
a read out of bounds) can reach neither a result nor a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Positions, each field ``[P]``: pairs, rows (no ``j``), keys (no ``row``) or heads (neither).

    ``parent`` and ``taken`` say which other points these are some of.
    """

    b: Tensor
    h: Tensor
    row: Tensor | None
    j: Tensor | None
    parent: Points | None = None
    taken: Tensor | None = None

    def __len__(self) -> int:
        return len(self.h)

    def take(self, which: Tensor) -> Points:
        """The points at the positions ``which`` of this list."""
        row, j = (None if x is None else x[which] for x in (self.row, self.j))
        return Points(self.b[which], self.h[which], row, j, self, which)


@dataclass(frozen=True, slots=True, eq=False)
class Visible:
    """The pairs that a mask leaves, and the rows and keys they touch.

    ``row_at [B, H, M]`` and ``key_at [B, H, N]`` give the place of a row in ``rows`` and of a key in ``keys``.
    """

    pairs: Points
    rows: Points
    keys: Points
    row_at: Tensor
    key_at: Tensor


def visible(mask: Tensor) -> Visible:
    """The points of a mask ``[B, H, M, N]``."""
    sees, seen = mask.any(3), mask.any(2)
    b, h, row = sees.nonzero(as_tuple=True)
    rows = Points(b, h, row, None)
    b, h, j = seen.nonzero(as_tuple=True)
    keys = Points(b, h, None, j)
    b, h, row, j = mask.nonzero(as_tuple=True)
    return Visible(Points(b, h, row, j), rows, keys, _places(sees), _places(seen))


def _places(chosen: Tensor) -> Tensor:
    return (chosen.flatten().cumsum(0) - 1).view(chosen.shape)


def grid(B: int, H: int, M: int | None, N: int | None, device: torch.device) -> Points:
    """All points of these sizes, in row-major order; ``None`` for an axis they do not have."""
    axes = [torch.arange(size, device=device) for size in (B, H, M, N) if size is not None]
    b, h, *rest = (x.flatten() for x in torch.meshgrid(*axes, indexing="ij"))
    return Points(b, h, rest[0] if M is not None else None, rest[-1] if N is not None else None)
