"""Expressions of a route as dense tensors.

A value is ``[B, H, n0, n1, .., C, K]``, with a width behind for vectors: heads, the indices of ``sum(n, ...)``, who
chooses (or its query rows) and what is chosen from (blocks, windows or keys). A dimension along which a value does not
vary has size 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnc.ir.nodes import (
    Apply,
    Bound,
    BranchOutput,
    Dot,
    Index,
    Kind,
    Literal,
    MatVec,
    Node,
    Param,
    Pool,
    Read,
    Reduce,
    Rope,
    Size,
    Slice,
    Token,
    Total,
    Window,
)
from attnc.ir.traverse import contains, postorder
from attnc.operations import OPERATIONS, rope
from attnc.routing.pools import pool_blocks, pool_windows, shares, window_means

FIRST_BOUND = 2
"""The dimension of ``n0``."""


class Widened(Mapping[str, Tensor]):
    """q, k and v by name in the type that is computed in, converted when first asked for; ``raw`` as they came."""

    def __init__(self, raw: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.raw, self.dtype = raw, dtype
        self._made: dict[tuple[str, bool], Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        key = name, torch.is_grad_enabled()  # what was converted for a choice has no gradient
        if key not in self._made:
            self._made[key] = self.raw[name].to(self.dtype)
        return self._made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """The tensors and numbers of one call.

    ``groups [H]`` gives the key head of each query head.
    """

    tokens: Widened
    inputs: Mapping[str, Tensor]
    params: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    groups: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tokens.dtype

    @property
    def device(self) -> torch.device:
        return self.groups.device

    @property
    def shift(self) -> int:
        """What makes a query row a position on the key axis."""
        return self.sizes["N"] - self.sizes["M"]


@dataclass(frozen=True, slots=True)
class Choosers:
    """Some of those who choose, and the query rows ``row_lo .. row_hi - 1`` that they stand for.

    ``block`` is ``None`` where each row chooses, 0 where all rows are one, else the queries of a block; ``first`` is
    the number of the first of these blocks.
    """

    row_lo: int
    row_hi: int
    block: int | None = None
    first: int = 0

    def count(self, shift: int) -> int:
        if self.block is None:
            return self.row_hi - self.row_lo
        return 1 if self.block == 0 else (self.row_hi - 1 + shift) // self.block - self.first + 1


@dataclass(slots=True, eq=False)
class Dense:
    """Evaluates for some choosers. ``blocks`` of ``block`` keys each are ranked.

    ``candidates [B or 1, H or 1, C, blocks]`` and ``windows`` (by length and stride, the same form) are what reductions
    run over. ``branches`` holds outputs ``[B, H, M, width]``; ``keys`` is how many positions ``j`` there are, if not N.
    Values that no chooser changes are kept in ``shared``.
    """

    call: Call
    choosers: Choosers
    block: int = 1
    bounds: int = 0
    candidates: Tensor | None = None
    windows: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)
    branches: Mapping[tuple[str, ...], Tensor] = field(default_factory=dict)
    keys: int | None = None
    shared: dict[Node, Tensor] = field(default_factory=dict)
    memo: dict[Node, Tensor] = field(default_factory=dict)

    def at(self, root: Node) -> Tensor:
        """The value of ``root``."""
        known = self.memo | self.shared
        for node in postorder(root, stop=known):
            if node not in known:
                place = self.memo if _varies_with_chooser(node) else self.shared
                known[node] = place[node] = self._compute(node)
        return known[root]

    def _get(self, node: Node) -> Tensor:
        found = self.memo.get(node)
        return self.shared[node] if found is None else found

    def _compute(self, node: Node) -> Tensor:
        call = self.call
        match node:
            case Literal(kind=kind, value=value):
                return self._number(torch.tensor(value, dtype=_type(kind, call), device=call.device))
            case Size(name=name):
                return self._number(torch.tensor(call.sizes[name], device=call.device))
            case Param(name=name):
                return self._number(call.params[name])
            case Index(name=name):
                return self._index(name)
            case Bound(level=level, extent=extent):
                return self._along(FIRST_BOUND + level, torch.arange(int(self._get(extent)), device=call.device))
            case Token(name="q"):
                q = call.tokens["q"][:, :, self.choosers.row_lo : self.choosers.row_hi]
                return self._spread(q[:, :, :, None])
            case Token(name=name):
                return self._spread(call.tokens[name][:, call.groups][:, :, None])
            case BranchOutput(names=names):
                at = self.choosers
                return self._spread(self.branches[names][:, :, at.row_lo : at.row_hi, None].to(call.dtype))
            case Read():
                return self._read(node)
            case Apply(op="real", args=(x,)):
                return self._get(x).to(call.dtype)
            case Apply(op=op, args=args):
                return self._apply(op, [self._beside(arg, node) for arg in args])
            case Dot(a=a, b=b):
                return _dot(self._get(a), self._get(b))
            case Reduce(over="d", op=op, x=x):
                return self._get(x).sum(-1) if op == "sum" else self._get(x).amax(-1)
            case Reduce():
                return self._reduce(node)
            case Slice(x=x, lo=lo, hi=hi):
                return self._get(x)[..., int(self._get(lo)) : int(self._get(hi))]
            case Rope(x=x, position=position, base=base, rotated=rotated):
                return rope(self._get(x), self._get(position), self._get(base), int(self._get(rotated)))
            case MatVec(x=x, matrix=matrix):
                return (self._get(x)[..., None, :] @ self._get(matrix))[..., 0, :]
            case Pool():
                return self._pool(node)
            case Window(x=x, length=length, stride=stride):
                keys = self._full(x, "K", call.sizes["N"])
                return window_means(keys, self._dim("K"), int(self._get(length)), int(self._get(stride)))
            case Total(x=x, index=Bound(level=level, extent=extent)):
                found, dim = self._get(x), FIRST_BOUND + level
                times = 1 if found.shape[dim] > 1 else int(self._get(extent))
                return found.sum(dim, keepdim=True) * times
        raise AssertionError(f"a route met {node!r}")

    # Places of dimensions

    @property
    def _dims(self) -> int:
        return FIRST_BOUND + self.bounds + 2

    def _dim(self, axis: str) -> int:
        return {"H": 1, "C": self._dims - 2, "K": self._dims - 1}[axis]

    def _number(self, x: Tensor) -> Tensor:
        return x.reshape([1] * self._dims)

    def _along(self, dim: int, x: Tensor) -> Tensor:
        return x.view([-1 if at == dim else 1 for at in range(self._dims)])

    def _spread(self, x: Tensor) -> Tensor:
        """``[B, H, C, K, ..]`` with dimensions for bounds."""
        return x.reshape(*x.shape[:2], *[1] * self.bounds, *x.shape[2:])

    def _full(self, node: Node, axis: str, size: int) -> Tensor:
        found, dim = self._get(node), self._dim(axis)
        return found.expand(*(size if at == dim else -1 for at in range(found.dim())))

    def _beside(self, arg: Node, node: Node) -> Tensor:
        found = self._get(arg)
        return found[..., None] if node.is_vector and not arg.is_vector else found

    # Nodes

    def _index(self, name: str) -> Tensor:
        call, at = self.call, self.choosers
        c, k = self._dims - 2, self._dims - 1

        def numbers(lo: int, hi: int) -> Tensor:
            return torch.arange(lo, hi, device=call.device)

        match name:
            case "b":
                return self._along(0, numbers(0, call.sizes["B"]))
            case "h":
                return self._along(1, numbers(0, call.sizes["H"]))
            case "g":
                return self._along(1, call.groups)
            case "row":
                return self._along(c, numbers(at.row_lo, at.row_hi))
            case "i":
                return self._along(c, numbers(at.row_lo + call.shift, at.row_hi + call.shift))
            case "I":
                return self._along(c, numbers(at.first, at.first + at.count(call.shift)))
            case "j":
                return self._along(k, numbers(0, call.sizes["N"] if self.keys is None else self.keys))
            case _:
                return self._along(k, numbers(0, -(-call.sizes["N"] // self.block)))

    def _read(self, node: Read) -> Tensor:
        """An element outside of the input is 0."""
        source = self.call.inputs[node.input.name]
        opened = [axis for axis, at in enumerate(node.indices) if at is None]
        closed = [axis for axis, at in enumerate(node.indices) if at is not None]
        source = source.permute((*closed, *opened)).to(_type(node.kind, self.call))
        if not closed:
            return source.view(*[1] * self._dims, *source.shape)
        inside: Tensor | bool = True
        indices = []
        for size, at in zip(source.shape, node.children, strict=False):
            place = self._get(at)
            inside = inside & (place >= 0) & (place < size)
            indices.append(place.clamp(0, max(size - 1, 0)))
        assert isinstance(inside, Tensor)
        width = [source.shape[axis] for axis in range(len(closed), source.dim())]
        if not all(source.shape[: len(closed)]):
            return source.new_zeros(*torch.broadcast_shapes(*(x.shape for x in indices)), *width)
        found = source[tuple(indices)]
        return torch.where(inside.view(*inside.shape, *[1] * len(width)), found, torch.zeros_like(found))

    @staticmethod
    def _apply(op: str, operands: list[Tensor]) -> Tensor:
        if op == "where":
            return torch.where(operands[0], operands[1], operands[2])
        if op in {"floordiv", "mod"} and not operands[1].is_floating_point():
            operands[1] = operands[1] + (operands[1] == 0)
        found: Tensor = OPERATIONS[op](*operands)
        return found

    def _reduce(self, node: Reduce) -> Tensor:
        """Over the candidates, or the windows that are seen whole."""
        if node.over == "w":
            seen = self.windows[window_of(node.x)]
        else:
            assert self.candidates is not None
            seen = self.candidates
        seen = self._spread(seen)
        x, dim = self._get(node.x), self._dim("K")
        if node.x.is_vector:
            seen = seen[..., None]
        if not seen.shape[dim]:
            return x.sum(dim, keepdim=True) if node.op == "sum" else x.sum(dim, keepdim=True) + float("-inf")
        if node.op == "sum":
            return torch.where(seen, x, torch.zeros_like(x)).sum(dim, keepdim=True)
        return torch.where(seen, x, torch.full_like(x, float("-inf"))).amax(dim, keepdim=True)

    def _pool(self, node: Pool) -> Tensor:
        sizes, at, x = self.call.sizes, self.choosers, node.x
        match node.over:
            case "j":
                keys = self._full(x, "K", sizes["N"])
                return pool_blocks(keys, self._dim("K"), self.block, 0, node.op)
            case "i":
                rows = self._full(x, "C", at.row_hi - at.row_lo)
                block, dim = at.block or at.row_hi - at.row_lo, self._dim("C")
                before = (at.row_lo + self.call.shift) % block if at.block else 0
                return pool_blocks(rows, dim, block, before, node.op)
            case "w":
                length, stride = window_of(x)
                shared = shares(sizes["N"], length, stride, self.block, self.call.device)
                return pool_windows(self._full(x, "K", len(shared)), self._dim("K"), shared / stride, node.op)
            case "g":
                every = self._full(x, "H", sizes["H"])
                sums = every.new_zeros(every.shape[0], sizes["G"], *every.shape[2:])
                return sums.index_add(1, self.call.groups, every)[:, self.call.groups]
            case _:
                return self._full(x, "H", sizes["H"]).sum(1, keepdim=True)


def window_of(root: Node) -> tuple[int, int]:
    """Length and stride of the windows that an expression varies over.

    Raises:
        ValueError: it varies over windows of several kinds.
    """
    found = set()
    reduced = {node for node in postorder(root) if "w" not in node.axes}
    for node in postorder(root, stop=reduced):
        if isinstance(node, Window):
            assert isinstance(node.length, Literal)
            assert isinstance(node.stride, Literal)
            found.add((int(node.length.value), int(node.stride.value)))
    if len(found) > 1:
        raise ValueError(f"windows of several kinds in one expression: {sorted(found)}")
    return found.pop()


def bounds_of(*roots: Node) -> int:
    """How many sums over an extra axis stand inside one another."""
    return max((node.level + 1 for node in postorder(*roots) if isinstance(node, Bound)), default=0)


def _varies_with_chooser(node: Node) -> bool:
    return bool(node.axes & {"i", "I"}) or contains(node, lambda n: isinstance(n, Reduce) and n.over in ("J", "w"))


def _type(kind: Kind, call: Call) -> torch.dtype:
    return {Kind.REAL: call.dtype, Kind.INT: torch.long, Kind.BOOL: torch.bool}[kind]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """``[.., C, K, D]`` twice to ``[.., C, K]``; a matrix product where one has no ``C`` and the other no ``K``."""
    if a.shape[-3] == 1 and b.shape[-2] == 1:
        a, b = b, a
    if a.shape[-2] == 1 and b.shape[-3] == 1:
        return a.squeeze(-2) @ b.squeeze(-3).transpose(-1, -2)
    return (a * b).sum(-1)
