"""What one call costs at least: visible pairs, floating-point operations, bytes that must move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from attnc.analyse.mask import analyse_mask
from attnc.analyse.scalar import evaluate
from attnc.analyse.tiles import classify_tiles
from attnc.analyse.visibility import Visibility
from attnc.ir.nodes import Dot, Input, Literal, Node, Param, Read
from attnc.ir.traverse import postorder
from attnc.plan import Plan
from attnc.signature import size_value

TILE = 64
AT_ONCE = 1 << 20
"""Pairs whose mask is evaluated together."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The least a call can cost.

    Attributes:
        pairs: visible pairs over all heads and batch rows; an upper bound if not ``exact``.
        flops: operations in products over the head widths, two for each multiplication and addition. Scalar work of a
            pair is not counted.
        bytes: q, k, v, the inputs and the output, each moved once; elements of two bytes, of inputs four.
        exact: whether ``pairs`` was counted; false where the mask reads inputs that were not given.
    """

    pairs: int
    flops: int
    bytes: int
    exact: bool


def cost(plan: Plan, sizes: Mapping[str, int], given: Mapping[str, Any]) -> Cost:
    """The cost of ``plan`` at ``sizes`` (``B H G M N D E`` and extents); ``given`` holds parameters and inputs."""
    env = {**{x.name: x.default for x in plan.program.parameters if x.default is not None}, **sizes, **given}
    exact = all(name in env for name in _names(plan.mask))
    pairs = visible_pairs(plan.mask, env) if exact else sizes["B"] * sizes["H"] * sizes["M"] * sizes["N"]
    flops = sum(2 * pairs * width for width in _products(plan))
    tokens = sizes["B"] * (
        sizes["H"] * sizes["M"] * (sizes["D"] + sizes["E"]) + sizes["G"] * sizes["N"] * (sizes["D"] + sizes["E"])
    )
    return Cost(pairs, flops, 2 * tokens + sum(4 * _elements(source, sizes) for source in plan.program.inputs), exact)


def visible_pairs(mask: Node, env: Mapping[str, Any]) -> int:
    """How many pairs of all heads and batch rows a mask leaves; ``env`` has all that the mask needs, by name."""
    seen = analyse_mask(mask)
    batch = range(env["B"] if "b" in mask.axes else min(env["B"], 1))
    heads = range(env["H"] if "h" in mask.axes else min(env["H"], 1))
    share = max(1, env["H"] // max(1, env["G"]))
    found = sum(_pairs_of_head(seen, {**env, "b": b, "h": h, "g": h // share}) for b in batch for h in heads)
    return found * (1 if "b" in mask.axes else env["B"]) * (1 if "h" in mask.axes else env["H"])


def _pairs_of_head(seen: Visibility, env: Mapping[str, Any]) -> int:
    """Full tiles by their area, the pairs of partial ones one by one."""
    m, n = env["M"], env["N"]
    tiles = classify_tiles(seen, m, n, TILE, TILE, env)
    rows, keys = torch.arange(0, m, TILE), torch.arange(0, n, TILE)
    areas = (m - rows).clamp(max=TILE)[:, None] * (n - keys).clamp(max=TILE)
    total = int(areas[tiles.full].sum())
    inside = torch.arange(TILE)
    for some in (tiles.visited & ~tiles.full).nonzero().split(AT_ONCE // TILE**2):
        row = (rows[some[:, 0]][:, None] + inside)[:, :, None]
        key = (keys[some[:, 1]][:, None] + inside)[:, None, :]
        here = torch.as_tensor(evaluate(seen.mask, {**env, "row": row, "i": row + n - m, "j": key}))
        total += int((here & (row < m) & (key < n)).sum())
    return total


def _names(mask: Node) -> set[str]:
    """Parameters and inputs that a mask needs."""
    found = {node.name for node in postorder(mask) if isinstance(node, Param)}
    return found | {node.input.name for node in postorder(mask) if isinstance(node, Read)}


def _products(plan: Plan) -> list[int]:
    """The widths of the products that are computed for each pair, over all passes."""
    widths = []
    for walk in plan.passes:
        terms = [part.term for part in walk.parts]
        dots = [node for node in postorder(*terms) if isinstance(node, Dot) and {"i", "j"} <= node.axes]
        widths += [_width(dot.a) for dot in dots] + [_width(x.value) for x in walk.accumulators]
    return widths


def _width(node: Node) -> int:
    assert isinstance(node.width, Literal)
    return int(node.width.value)


def _elements(source: Input, sizes: Mapping[str, int]) -> int:
    product = 1
    for dim in source.dims:
        product *= size_value(dim, sizes)
    return product
