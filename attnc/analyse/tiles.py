"""Which tiles a kernel visits, counted in Python from the same nodes that kernels evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnc.analyse.scalar import Environment, evaluate
from attnc.analyse.visibility import Visibility
from attnc.ir.nodes import Read
from attnc.ir.traverse import postorder


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles of one head. ``visited`` and ``full`` are bool [row tiles, key tiles]; full tiles are visited."""

    visited: Tensor
    full: Tensor

    @property
    def counts(self) -> tuple[int, int]:
        """Partial tiles, full tiles."""
        full = int(self.full.sum())
        return int(self.visited.sum()) - full, full


def visited_tiles(
    visibility: Visibility, m: int, n: int, block_m: int, block_n: int, env: Environment
) -> tuple[int, int]:
    """How many partial and how many full tiles are visited; see :func:`classify_tiles`."""
    return classify_tiles(visibility, m, n, block_m, block_n, env).counts


def classify_tiles(v: Visibility, m: int, n: int, block_m: int, block_n: int, env: Environment) -> Tiles:
    """The tiles within the key ranges that are not ``empty``, as kernels walk them.

    Args:
        v: the analysed mask.
        m: query rows, the last of which is at position ``n - 1``.
        n: keys.
        block_m: rows a tile.
        block_n: keys a tile.
        env: parameters, extents and inputs by name, and ``b h g`` (default 0). Where the mask depends on data and all
            of it is given, tiles left open are classified by evaluating the mask; else they count as partial.

    Memory is proportional to the number of tiles, and to one row of tiles where the mask is evaluated.
    """
    env = {"B": 1, "H": 1, "G": 1, "b": 0, "h": 0, "g": 0} | dict(env) | {"M": m, "N": n}
    rows = torch.arange(n - m, n, block_m)[:, None]
    keys = torch.arange(0, n, block_n)
    shape = len(rows), len(keys)
    i_hi, j_hi = (rows + block_m - 1).clamp(max=n - 1), (keys + block_n - 1).clamp(max=n - 1)
    tile = {**env, "i_lo": rows, "i_hi": i_hi, "j_lo": keys, "j_hi": j_hi}
    visited = torch.zeros(shape, dtype=torch.bool)
    if not visited.numel():
        return Tiles(visited, visited)
    for r in v.key_ranges:
        lo, hi = evaluate(r.lo, tile), evaluate(r.hi, tile)
        visited |= (j_hi >= lo) & (keys < hi) & (torch.as_tensor(lo) < hi)
    visited &= ~torch.as_tensor(evaluate(v.empty, tile))
    full = visited & torch.as_tensor(evaluate(v.full, tile))
    if v.by_data and _reads(v) <= env.keys():
        for t in range(shape[0]):
            some, every = _look(v, env, int(rows[t]), int(i_hi[t]), n, block_n)
            visited[t] &= some
            full[t] |= visited[t] & every
    return Tiles(visited, full)


def _reads(v: Visibility) -> set[str]:
    return {node.input.name for node in postorder(v.mask) if isinstance(node, Read)}


def _look(v: Visibility, env: dict[str, Any], i_lo: int, i_hi: int, n: int, block_n: int) -> tuple[Tensor, Tensor]:
    """Whether some and whether every pair of each tile of a row of tiles is visible; bool [key tiles]."""
    i, j = torch.arange(i_lo, i_hi + 1)[:, None], torch.arange(n)
    seen = torch.as_tensor(evaluate(v.mask, {**env, "i": i, "j": j})).expand(len(i), n)
    some, every = seen.any(0), seen.all(0)
    padding = -n % block_n
    some = torch.nn.functional.pad(some, (0, padding), value=False).view(-1, block_n)
    every = torch.nn.functional.pad(every, (0, padding), value=True).view(-1, block_n)
    return some.any(1), every.all(1)
