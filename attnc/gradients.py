"""From what a backward kernel writes to the gradients of the arguments: sums over heads, over axes, and into reads.

A result of one kernel is per batch row, query head and row or key; where a walk summed the query heads of a group, per
key head. The gradient of an argument gathers it at the place it was read from: a permutation and a sum where its
indices are positions (``slope[h]``, ``gate[b, h, row, :]``), else an indexed sum. Everything is the same bits for the
same call, on CPUs and GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from attnc.analyse.scalar import evaluate
from attnc.ir import build
from attnc.ir.nodes import Index, Literal, Node, Read, Slice, Token
from attnc.ir.program import DEFAULT_GROUP
from attnc.signature import size_value

if TYPE_CHECKING:
    from attnc.analyse.gradient.backward import Backward, Contribution

Label: TypeAlias = str | int
"""What a dimension runs over: ``b h g row i j``, ``d`` (a width), ``p0 p1 ...`` (of a scatter), or one fixed place."""

HEADS = ("b", "h", "g")


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as far as gradients need it: sizes with extents, tensors and numbers by name, the map of heads."""

    sizes: Mapping[str, int]
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    group: Node
    _groups: list[Tensor] = field(default_factory=list)

    @property
    def wide(self) -> torch.dtype:
        """The element type of sums."""
        return torch.float64 if self.tensors["q"].dtype == torch.float64 else torch.float32

    @property
    def groups(self) -> Tensor:
        """The key head of each query head, ``[H]``, on the CPU."""
        if not self._groups:
            heads = torch.arange(self.sizes["H"])
            found = evaluate(self.group, {**self.sizes, **self.numbers, **self.tensors, "h": heads})
            self._groups.append(torch.as_tensor(found).expand(self.sizes["H"]))
        return self._groups[0]


def results_for(backward: Backward, call: Call) -> list[Tensor]:
    """Empty tensors for :meth:`attnc.backends.protocol.BackwardKernel.run` to write, one for each contribution.

    What is a gradient as it stands has the element type and the layout of its argument; the rest is wide.
    """
    return [
        torch.empty_like(call.tensors[part.name])
        if _is_gradient(backward, part, call)
        else call.tensors["q"].new_empty([size_value(dim, call.sizes) for dim in part.result.dims], dtype=call.wide)
        for part in backward.contributions
    ]


def gradients(backward: Backward, call: Call, results: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    """The gradients of ``names``, like their arguments, from what the kernel wrote into :func:`results_for`."""
    found: dict[str, Tensor] = {}
    totals: dict[str, Tensor] = {}
    for part, result in zip(backward.contributions, results, strict=True):
        if _is_gradient(backward, part, call):
            found[part.name] = result
        else:
            totals[part.name] = _added(totals.get(part.name), part, result, call)
    for name in names:
        if name not in found:
            like = torch.empty_like(call.tensors[name])
            found[name] = like.copy_(totals[name]) if name in totals else like.zero_()
    return [found[name] for name in names]


def _is_gradient(backward: Backward, part: Contribution, call: Call) -> bool:
    """Whether a result is the whole gradient of its argument, so that the kernel can write it as such."""
    argument = call.tensors[part.name]
    alone = sum(other.name == part.name for other in backward.contributions) == 1
    allowed = (call.wide,) if part.level == "pair" else (call.tensors["q"].dtype, call.wide)
    if not alone or isinstance(part.at, Slice) or argument.dtype not in allowed:
        return False
    target, result = _target(part), _result(part)
    if "h" in result and call.group is DEFAULT_GROUP and call.sizes["G"] == call.sizes["H"]:
        target = ["h" if label == "g" else label for label in target]
    if "i" in target and call.sizes["M"] == call.sizes["N"]:
        target = ["row" if label == "i" else label for label in target]
    return target == result and list(argument.shape) == [size_value(dim, call.sizes) for dim in part.result.dims]


def _result(part: Contribution) -> list[Label]:
    if part.level == "pair":
        return ["b", "h", *(f"p{at}" for at in range(len(part.result.dims) - 2))]
    head = "g" if part.result.dims[1] is build.size("G") else "h"
    labels: list[Label] = ["b", head, "row" if part.level == "query" else "j"]
    return labels + ["d"] * (len(part.result.dims) - 3)


def _target(part: Contribution) -> list[Label | None]:
    """What each dimension of the argument runs over; ``None`` where it is read at more than a position."""
    match part.at:
        case Token(name="q") | Slice(x=Token(name="q")):
            return ["b", "h", "row", "d"]
        case Token() | Slice():
            return ["b", "g", "j", "d"]
        case Read(indices=indices):
            scattered = iter(range(len(indices)))
            return [_label(at, part.level == "pair", scattered) for at in indices]
    raise AssertionError(f"a gradient of {part.at!r}")


def _label(at: Node | None, pair: bool, scattered: Any) -> Label | None:
    match at:
        case None:
            return "d"
        case Index(name=name) if name in HEADS or not pair:
            return name
        case _ if pair:
            return f"p{next(scattered)}"
        case Literal(value=value):
            return int(value)
    return None


def _added(total: Tensor | None, part: Contribution, result: Tensor, call: Call) -> Tensor:
    """``total`` and what a result adds to it; all of it in one tensor like the argument, wide."""
    argument = call.tensors[part.name]
    labels = _target(part)
    heads = [label for label in labels if label in ("h", "g")]
    positions = [label for label in labels if isinstance(label, str)]
    simple = None not in labels and len(set(positions)) == len(positions) and len(heads) < 2
    if simple:
        x = _permuted(result, _result(part), labels, call)
        if total is None and x.shape == argument.shape and "i" not in labels and not isinstance(part.at, Slice):
            return x
    if total is None:
        total = torch.zeros(argument.shape, dtype=call.wide, device=argument.device)
    if simple:
        _add_at_positions(_part_of(total, part, call), labels, x, call)
    elif part.level == "pair":
        _add_by_head(total, part, result, call)
    else:
        _add_at_indices(total, part, result, call)
    return total


def _part_of(total: Tensor, part: Contribution, call: Call) -> Tensor:
    match part.at:
        case Slice(lo=lo, hi=hi):
            return total[..., size_value(lo, call.sizes) : size_value(hi, call.sizes)]
    return total


def _permuted(x: Tensor, labels: list[Label], target: Sequence[Label | None], call: Call) -> Tensor:
    """``x`` summed over what the target lacks, with the order of its dimensions; fixed places are left out."""
    if "g" in target and "h" in labels:
        x, labels = _sum_groups(x, call), ["g" if label == "h" else label for label in labels]
    if "i" in target:
        labels = ["i" if label == "row" else label for label in labels]
    if "d" in target and "d" not in labels:
        x, labels = x[..., None], [*labels, "d"]
    if missing := [at for at, label in enumerate(labels) if label not in target]:
        x = x.sum(missing)
        labels = [label for label in labels if label in target]
    return x.permute([labels.index(label) for label in target if isinstance(label, str)])


def _sum_groups(x: Tensor, call: Call) -> Tensor:
    """``[B, H, ...]`` as sums over the query heads of each key head, ``[B, G, ...]``."""
    heads, groups = call.sizes["H"], call.sizes["G"]
    if call.group is DEFAULT_GROUP:
        return x if heads == groups else x.unflatten(1, (groups, heads // groups)).sum(2)
    members = [(call.groups == g).nonzero()[:, 0].to(x.device) for g in range(groups)]
    return torch.stack([x.index_select(1, chosen).sum(1) for chosen in members], 1)


def _add_at_positions(total: Tensor, labels: Sequence[Label | None], x: Tensor, call: Call) -> None:
    """``total[...] += x`` where both run over the same positions; a dimension may be longer than what reads it."""
    at = 0
    for label in labels:
        if isinstance(label, int):
            total = total.select(at, label)
            continue
        shift = call.sizes["N"] - call.sizes["M"] if label == "i" else 0
        begin = max(0, -shift)
        length = min(x.shape[at] - begin, total.shape[at] - begin - shift) if label != "d" else 0
        if label != "d" and length <= 0:
            return
        if label != "d":
            x, total = x.narrow(at, begin, length), total.narrow(at, begin + shift, length)
        at += 1
    total.add_(x)


def _add_by_head(total: Tensor, part: Contribution, result: Tensor, call: Call) -> None:
    """A scatter whose heads are read more than once, as in ``t[h, h, ...]``: head by head."""
    labels = _target(part)
    for b in range(call.sizes["B"]):
        for h in range(call.sizes["H"]):
            head: dict[Label | None, int] = {"b": b, "h": h, "g": int(call.groups[h])}
            total[tuple(head.get(label, slice(None)) for label in labels)] += result[b, h]


def _add_at_indices(total: Tensor, part: Contribution, result: Tensor, call: Call) -> None:
    """``total[indices] += result`` where indices are expressions of ``b h`` and the row, or of ``b h j``."""
    assert isinstance(part.at, Read)
    device = result.device
    opened = [at for at, index in enumerate(part.at.indices) if index is None]
    indices = [index for index in part.at.indices if index is not None]
    x = result[..., None] if len(_result(part)) == 3 else result
    used = frozenset[str]().union(*(index.axes for index in indices))
    kept = [at for at, axis in enumerate("bh" + ("i" if part.level == "query" else "j")) if axis in used]
    if missing := [at for at in range(3) if at not in kept]:
        x = x.sum(missing)
    env: dict[str, Any] = {**call.sizes, **call.numbers, **call.tensors}
    for at in kept:
        env[str(_result(part)[at])] = torch.arange(result.shape[at], device=device).view(
            [-1 if other == at else 1 for other in kept]
        )
    if "h" in env:
        env["g"] = call.groups.to(device)[env["h"]]
    places = [torch.as_tensor(evaluate(index, env), device=device).expand(x.shape[:-1]) for index in indices]
    extents = [size for at, size in enumerate(total.shape) if at not in opened]
    inside = torch.ones(x.shape[:-1], dtype=torch.bool, device=device)
    flat = torch.zeros(x.shape[:-1], dtype=torch.long, device=device)
    for place, extent in zip(places, extents, strict=True):
        inside &= (place >= 0) & (place < extent)
        flat = flat * extent + place
    width = math.prod(total.shape[at] for at in opened)
    sums = torch.zeros(math.prod(extents), width, dtype=total.dtype, device=device)
    if sums.numel() == 0:
        return
    values = torch.where(inside[..., None], x, 0).expand(*x.shape[:-1], width).reshape(-1, width)
    _accumulate(sums, torch.where(inside, flat, 0).reshape(-1), values)
    summed = sums.view(*extents, width)
    total.add_(summed.movedim(-1, opened[0]) if opened else summed[..., 0])


def _accumulate(sums: Tensor, rows: Tensor, values: Tensor) -> None:
    """``sums[rows] += values``, always in the same order: torch's indexed sums are not, on one device or the other."""
    if sums.is_cuda:
        sums.index_put_((rows,), values, accumulate=True)
    else:
        width = sums.shape[1]
        places = rows[:, None] * width + torch.arange(width, device=rows.device)
        sums.view(-1).index_add_(0, places.view(-1), values.reshape(-1))
