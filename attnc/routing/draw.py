"""A route on given tensors, as text: which blocks rows took, the share of pairs kept, the work against dense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attnc.ir.nodes import Node
from attnc.routing.choice import Choice, by_head, unpack
from attnc.routing.choose import visible_pairs
from attnc.routing.dense import Call

GLYPHS = "·░▒▓█"
LINES, COLUMNS = 32, 96
AT_ONCE = 1 << 26
"""Pairs looked at together."""

SHOWN_ROWS = 5


def draw_choices(call: Call, mask: Node, choices: Sequence[Choice], widths: int, b: int = 0, h: int = 0) -> str:
    """One attention's choices.

    Args:
        call: what they were chosen on.
        mask: the mask without the routes.
        choices: what the routes chose.
        widths: the widths of k and v together, for the work.
        b: batch row to draw.
        h: query head to draw.
    """
    m, n = call.sizes["M"], call.sizes["N"]
    if not m or not n:
        return "nothing to draw: there are no pairs"
    kept, dense = torch.zeros(m, COLUMNS), torch.zeros(m, COLUMNS)
    pairs = [0, 0]
    bins = torch.arange(n, device=call.device) * min(COLUMNS, n) // n
    for lo, hi in _stretches(call):
        for at, (left, total) in enumerate(((choices, kept), ((), dense))):
            seen = visible_pairs(call, mask, left, lo, hi)
            seen = seen.expand(*seen.shape[:2], hi - lo, n)
            every = call.sizes["B"] * call.sizes["H"] // max(1, seen.shape[0] * seen.shape[1])
            pairs[at] += int(seen.sum()) * every
            one = seen[b if seen.shape[0] > 1 else 0, h if seen.shape[1] > 1 else 0].float()
            total[lo:hi] = torch.zeros(hi - lo, COLUMNS, device=call.device).index_add(1, bins, one).cpu()
    lines = [f"batch row {b}, head {h}: rows downwards, keys to the right; the share of visible pairs that is kept"]
    lines += _picture(kept, dense, min(COLUMNS, n))
    lines += [line for number, choice in enumerate(choices, 1) for line in _rows(call, choice, number, b, h)]
    share = pairs[0] / pairs[1] if pairs[1] else 0.0
    lines.append(f"kept {pairs[0]:,} of {pairs[1]:,} visible pairs of all heads: {100 * share:.1f} %")
    work = [f"{2 * widths * count / 1e9:.3f}" for count in pairs]
    lines.append(f"products of these pairs: {work[0]} GFLOP, without the routes {work[1]} GFLOP")
    return "\n".join(lines)


def _stretches(call: Call) -> Iterator[tuple[int, int]]:
    m = call.sizes["M"]
    step = max(1, AT_ONCE // max(1, call.sizes["N"] * call.sizes["B"] * call.sizes["H"]))
    for lo in range(0, m, step):
        yield lo, min(lo + step, m)


def _picture(kept: Tensor, dense: Tensor, columns: int) -> list[str]:
    lines = []
    for rows in torch.arange(len(kept)).tensor_split(min(LINES, len(kept))):
        left, all_ = kept[rows].sum(0), dense[rows].sum(0)
        share = torch.where(all_ > 0, left / all_.clamp(min=1), torch.zeros(()))[:columns]
        lines.append("".join(GLYPHS[int(-(-x * (len(GLYPHS) - 1) // 1))] for x in share.tolist()))
    return lines


def _rows(call: Call, choice: Choice, number: int, b: int, h: int) -> Iterator[str]:
    """What a few rows took."""
    every = by_head(choice.words, call)
    words = every[b if every.shape[0] > 1 else 0, h if every.shape[1] > 1 else 0]
    rows = torch.linspace(0, call.sizes["M"] - 1, SHOWN_ROWS).long().unique()
    for row in rows.tolist():
        at = torch.tensor([row], device=call.device)
        taken = unpack(words[choice.of_chooser(at, call.shift)])[0].nonzero()[:, 0].tolist()
        if choice.block == 0:
            yield f"route {number}: row {row} is {'kept' if taken else 'left out'}"
            continue
        what = "keys" if choice.block == 1 else f"blocks of {choice.block}"
        shown = " ".join(map(str, taken[:16])) + (" ..." if len(taken) > 16 else "")
        yield f"route {number}: row {row} took {len(taken)} {what}: {shown or 'none'}"
