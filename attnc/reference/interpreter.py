"""The interpreter of programs: one memoised ``match`` over the nodes, on lists of points.

Values are ``[P]`` for a scalar and ``[P, width]`` for a vector at ``P`` points, or without the first dimension where
they are the same at all points.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attnc.analyse.scalar import evaluate
from attnc.ir import build
from attnc.ir.nodes import (
    Apply,
    BranchOutput,
    Cumsum,
    Dot,
    Index,
    Kind,
    Literal,
    MatVec,
    Node,
    Param,
    Read,
    Reduce,
    Rope,
    Size,
    Slice,
    Solve,
    Token,
    Window,
)
from attnc.ir.printer import expression
from attnc.ir.program import Body, Listed, Program
from attnc.ir.traverse import contains, postorder
from attnc.operations import OPERATIONS, rope
from attnc.reference.points import Points, Visible, grid, visible
from attnc.routing.choose import choose, visible_pairs
from attnc.routing.dense import Call, Widened
from attnc.routing.pools import window_count, window_means

_ROW_AXES, _KEY_AXES = frozenset("bhi"), frozenset("bhj")


class Run:
    """One call: its tensors, its visible pairs and what was computed so far."""

    def __init__(
        self,
        program: Program,
        tokens: tuple[Tensor, Tensor, Tensor],
        inputs: Mapping[str, Tensor],
        params: Mapping[str, float | Tensor],
        extents: Mapping[str, int],
        compute: torch.dtype,
        branches: Mapping[tuple[str, ...], Tensor] = {},
        rows: Tensor | None = None,
    ) -> None:
        """``branches`` are the outputs that the body's output combines, at the ``rows [B, H, M]`` that see a key."""
        q, k, v = tokens
        self.branches = branches
        self.device, self.dtype, self.inputs = q.device, compute, inputs
        self.tokens = {name: x.to(compute) for name, x in zip("qkv", tokens, strict=True)}
        self.sizes = dict(zip("BHMD", q.shape, strict=True)) | {"G": k.shape[1], "N": k.shape[2], "E": v.shape[3]}
        self.sizes |= extents
        self.B, self.H, self.M = (self.sizes[name] for name in "BHM")
        self.N = self._key_count(program.body)
        self.params = {
            x.name: self._parameter(x.name, x.kind, params.get(x.name, x.default)) for x in program.parameters
        }
        self.memo: dict[tuple[Node, Points], Tensor] = {}
        self.outer: dict[tuple[Node, Visible], Tensor] = {}
        self.heads = grid(1, self.H, None, None, self.device)
        self.is_lenient = False
        self._check_space(program)
        self.groups = self.at(program.group, self.heads).expand(self.H)
        if ((self.groups < 0) | (self.groups >= max(self.sizes["G"], 1))).any():
            raise IndexError(f"`groups` gives {self.groups.tolist()}, but there are {self.sizes['G']} key heads")
        if rows is not None:
            self.seen = visible(rows[..., None])
            return
        self.is_lenient = True
        seen = self._mask(program.body.mask)
        self.is_lenient = False
        if program.body.routes:
            seen = seen & self._chosen(program.body)
        if program.listed:
            seen = seen & self._on_lists(program.listed)
        self.seen = visible(seen)
        self.memo.clear()
        if contains(program.body.mask, lambda node: isinstance(node, Read)):
            self.at(program.body.mask, self.seen.pairs)

    @property
    def shift(self) -> int:
        """What makes a query row a position on the axis of tokens."""
        return self.sizes["N"] - self.M

    def _parameter(self, name: str, kind: Kind, value: float | Tensor | None) -> Tensor:
        if value is None:
            raise ValueError(f"the parameter `{name}` is missing")
        dtype = {Kind.REAL: self.dtype, Kind.INT: torch.long, Kind.BOOL: torch.bool}[kind]
        return torch.as_tensor(value, dtype=dtype, device=self.device)

    def _check_space(self, program: Program) -> None:
        total = 1
        for _, extent in program.space:
            total *= self.constant(extent)
        if program.space and total != self.sizes["N"]:
            raise ValueError(f"the space has {total} positions, but there are {self.sizes['N']} keys")

    def _mask(self, mask: Node) -> Tensor:
        """The mask, dense; evaluated once for all the batch rows and heads it does not depend on."""
        B, H = self.B if "b" in mask.axes else min(self.B, 1), self.H if "h" in mask.axes else min(self.H, 1)
        found = self.at(mask, grid(B, H, self.M, self.N, self.device)).expand(B * H * self.M * self.N)
        return found.view(B, H, self.M, self.N).expand(self.B, self.H, -1, -1)

    def _key_count(self, body: Body) -> int:
        """How many keys there are: tokens, or windows of them."""
        if body.windows is None:
            return self.sizes["N"]
        length, stride = (evaluate(size, self.sizes) for size in body.windows)
        return window_count(self.sizes["N"], length, stride)

    def call(self) -> Call:
        """What routes are chosen on."""
        return Call(Widened(self.tokens, self.dtype), self.inputs, self.params, self.sizes, self.groups)

    def _chosen(self, body: Body) -> Tensor:
        """The pairs that the routes leave, ``[B, H, M, N]``."""
        call = self.call()
        choices = choose(call, body.mask, body.routes)
        left = visible_pairs(call, build.literal(True), choices, 0, self.M)
        return left.expand(self.B, self.H, self.M, self.N)

    def _on_lists(self, listed: Listed) -> Tensor:
        """The pairs whose key is on the list of its row, ``[B, H, M, N]``."""
        numbers, counts = (self.inputs[source.name] for source in (listed.numbers, listed.counts))
        every = torch.arange(self.H, device=self.device)
        heads = {"H": every, "G": self.groups}.get(listed.heads, torch.zeros_like(every))
        on = torch.arange(numbers.shape[-1], device=self.device) < counts[..., None]
        found = torch.zeros(*numbers.shape[:-1], self.N + 1, dtype=torch.bool, device=self.device)
        found.scatter_(-1, torch.where(on, numbers, self.N).long(), True)
        return found[:, heads, :, : self.N]

    def rows_to_tensor(self, node: Node, elsewhere: float) -> Tensor:
        """The row expression ``node``, dense, ``elsewhere`` in rows without a visible key."""
        rows = self.seen.rows
        found = self.spread(node, rows)
        dense = found.new_full((self.B * self.H * self.M, *found.shape[1:]), elsewhere)
        dense = dense.index_copy(0, self._row_number(rows), found)
        return dense.view(self.B, self.H, self.M, *found.shape[1:])

    def constant(self, node: Node) -> int:
        """The value of an ``int`` that is the same everywhere."""
        return int(self.at(node, self.heads))

    def spread(self, node: Node, points: Points) -> Tensor:
        """The value with its dimension of points."""
        found = self.at(node, points)
        width = found.shape[-1:] if node.is_vector else ()
        return found.expand(len(points), *width)

    def at(self, root: Node, points: Points) -> Tensor:
        """The value of ``root`` at ``points``."""
        for node in postorder(root, stop=_Elsewhere(self, points)):
            if (node, points) not in self.memo:
                self.memo[node, points] = self._compute(node, points)
        return self.memo[root, points]

    def is_elsewhere(self, node: Node, points: Points) -> bool:
        """Whether the value at ``points`` is not computed from the node's children there."""
        return (
            (node, points) in self.memo
            or (points.parent is not None and (node, points.parent) in self.memo)
            or (isinstance(node, Reduce) and node.over == "j")
            or isinstance(node, Cumsum | Solve | Window)
            or (isinstance(node, Apply) and node.op == "where")
            or (isinstance(node, Dot) and self._sides(node, points) is not None)
            or self._home(node, points) is not None
        )

    def _home(self, node: Node, points: Points) -> tuple[Points, Tensor] | None:
        """The rows or keys at which a part of a pair expression is computed, and the place of ``points`` there."""
        if self.is_lenient or points.j is None or points.row is None or not node.children:
            return None
        if node.axes <= _ROW_AXES:
            return (self.seen.rows, self.seen.row_at[points.b, points.h, points.row]) if node.axes else None
        if node.axes <= _KEY_AXES and (node.is_vector or isinstance(node, Dot | Reduce)):
            return self.seen.keys, self.seen.key_at[points.b, points.h, points.j]
        return None

    def _compute(self, node: Node, points: Points) -> Tensor:
        if points.parent is not None and (known := self.memo.get((node, points.parent))) is not None:
            return self._place(known, node, points.taken)
        if home := self._home(node, points):
            there, place = home
            return self._place(self.at(node, there), node, place)
        match node:
            case Literal(kind=kind, value=value):
                dtype = {Kind.REAL: self.dtype, Kind.INT: torch.long, Kind.BOOL: torch.bool}[kind]
                return torch.tensor(value, dtype=dtype, device=self.device)
            case Size(name=name):
                if name not in self.sizes:
                    raise ValueError(f"the extent `{name}` is missing")
                return torch.tensor(self.sizes[name], device=self.device)
            case Param(name=name):
                return self.params[name]
            case Index(name=name):
                return self._index(name, points)
            case Token(name="q"):
                return self.tokens["q"][points.b, points.h, points.row]
            case Token(name="$k"):
                assert points.row is not None
                return self.tokens["k"][points.b, self.groups[points.h], points.row + self.shift]
            case Token(name=name):
                return self.tokens[name][points.b, self.groups[points.h], points.j]
            case Read():
                return self._read(node, points)
            case Apply(op="where"):
                return self._where(node, points)
            case Apply(op="real", args=(x,)):
                return self.at(x, points).to(self.dtype)
            case Apply(op=op, args=args):
                return self._apply(op, node, [self._beside(arg, node, points) for arg in args])
            case Dot():
                return self._dot(node, points)
            case Reduce(over="d", op=op, x=x):
                return self.at(x, points).sum(-1) if op == "sum" else self.at(x, points).amax(-1)
            case Reduce():
                return self._over_keys(node, points)
            case Slice(x=x, lo=lo, hi=hi):
                return self.at(x, points)[..., self.constant(lo) : self.constant(hi)]
            case Rope(x=x, position=position, base=base, rotated=rotated):
                return rope(
                    self.at(x, points), self.at(position, points), self.at(base, points), self.constant(rotated)
                )
            case MatVec(x=x, matrix=matrix):
                return (self.at(x, points)[..., None, :] @ self.at(matrix, points))[..., 0, :]
            case Cumsum(x=x, at=at):
                return self._cumsum(x, at, points)
            case Solve(pair=pair, x=x):
                return self._solve(pair, x, points)
            case Window(x=x, length=length, stride=stride):
                return self._windows(x, self.constant(length), self.constant(stride))[points.b, points.h, points.j]
            case BranchOutput(names=names):
                return self.branches[names][points.b, points.h, points.row]
            case _:
                pass
        raise AssertionError(f"the reference met {node!r}")

    @staticmethod
    def _place(found: Tensor, node: Node, place: Tensor | None) -> Tensor:
        has_points = found.dim() > int(node.is_vector)
        return found[place] if has_points else found

    def _beside(self, arg: Node, node: Node, points: Points) -> Tensor:
        """An operand of ``node``: a scalar beside vectors gets a dimension to be repeated over."""
        found = self.at(arg, points)
        return found[:, None] if node.is_vector and not arg.is_vector and found.dim() else found

    def _index(self, name: str, points: Points) -> Tensor:
        match name:
            case "i":
                assert points.row is not None
                return points.row + self.shift
            case "g":
                return self.groups[points.h]
            case _:
                found: Tensor = getattr(points, name)
                return found

    def _read(self, node: Read, points: Points) -> Tensor:
        source = self.inputs[node.input.name]
        opened = [axis for axis, at in enumerate(node.indices) if at is None]
        closed = [axis for axis, at in enumerate(node.indices) if at is not None]
        source = source.permute(*closed, *opened)
        source = source.to({Kind.REAL: self.dtype, Kind.INT: torch.long, Kind.BOOL: torch.bool}[node.kind])
        indices = [self.at(at, points) for at in node.children]
        for axis, at in enumerate(indices):
            size = source.shape[axis]
            outside = (at < 0) | (at >= size)
            if outside.any() and not self.is_lenient:
                wrong = int(at[outside].flatten()[0])
                raise IndexError(f"`{expression(node)}` is read at {wrong} of {size} along dimension {closed[axis]}")
            if self.is_lenient and size:
                indices[axis] = at.clamp(0, size - 1)
        if self.is_lenient and not all(source.shape[: len(indices)]):
            return source.new_zeros(len(points))
        return source[tuple(indices)] if indices else source

    def _apply(self, op: str, node: Node, operands: list[Tensor]) -> Tensor:
        if op in {"floordiv", "mod"} and node.kind is Kind.INT and (operands[1] == 0).any():
            if not self.is_lenient:
                raise ZeroDivisionError(f"`{expression(node)}` divides by zero")
            operands[1] = operands[1] + (operands[1] == 0)
        return OPERATIONS[op](*operands)

    def _where(self, node: Apply, points: Points) -> Tensor:
        """Each side is computed where it is chosen, so that the other cannot spoil the gradient or read outside."""
        condition = self.at(node.args[0], points)
        if node.args[0].is_vector:
            _, then, otherwise = (self._beside(arg, node, points) for arg in node.args)
            return torch.where(condition, then, otherwise)
        condition = condition.expand(len(points))
        parts = []
        for side, chosen in zip(node.args[1:], (condition, ~condition), strict=True):
            which = chosen.nonzero()[:, 0]
            found = self.spread(side, points if len(which) == len(points) else points.take(which))
            parts.append((which, found if node.is_vector is side.is_vector else found[:, None]))
        width = torch.broadcast_shapes(*(found.shape[1:] for _, found in parts))
        result = parts[0][1].new_zeros((len(points), *width))
        for which, found in parts:
            result = result.index_copy(0, which, found.expand(-1, *width))
        return result

    def _row_number(self, points: Points) -> Tensor:
        assert points.row is not None
        return (points.b * self.H + points.h) * self.M + points.row

    def _key_number(self, points: Points) -> Tensor:
        assert points.j is not None
        return (points.b * self.H + points.h) * self.N + points.j

    def _pair_number(self, points: Points) -> Tensor:
        assert points.j is not None
        return self._row_number(points) * self.N + points.j

    def _sides(self, node: Dot, points: Points) -> tuple[Node, Node] | None:
        """The row's and the key's vector of a dot product of a pair, which one matrix product gives for all pairs."""
        if self.is_lenient or points.row is None or points.j is None:
            return None
        for a, b in ((node.a, node.b), (node.b, node.a)):
            if "i" in a.axes and a.axes <= _ROW_AXES and "j" in b.axes and b.axes <= _KEY_AXES:
                return a, b
        return None

    def _dot(self, node: Dot, points: Points) -> Tensor:
        sides = self._sides(node, points)
        if sides is None:
            return (self.at(node.a, points) * self.at(node.b, points)).sum(-1)
        if (node, self.seen) not in self.outer:
            rows, keys = self._dense_rows(sides[0]), self._dense_keys(sides[1])
            self.outer[node, self.seen] = (rows @ keys.transpose(-1, -2)).flatten()
        return self.outer[node, self.seen][self._pair_number(points)]

    def _dense_rows(self, node: Node) -> Tensor:
        """A row vector as ``[B, H, M, width]``, 0 where nothing is visible."""
        found = self.spread(node, self.seen.rows)
        dense = found.new_zeros(self.B * self.H * self.M, found.shape[-1])
        dense = dense.index_copy(0, self._row_number(self.seen.rows), found)
        return dense.view(self.B, self.H, self.M, found.shape[-1])

    def _dense_keys(self, node: Node) -> Tensor:
        """A key vector as ``[B, H, N, width]``, 0 where nobody sees it."""
        found = self.spread(node, self.seen.keys)
        dense = found.new_zeros(self.B * self.H * self.N, found.shape[-1])
        return dense.index_copy(0, self._key_number(self.seen.keys), found).view(
            self.B, self.H, self.N, found.shape[-1]
        )

    def _over_keys(self, node: Reduce, points: Points) -> Tensor:
        rows, pairs = self.seen.rows, self.seen.pairs
        if points is not rows:
            place = self.seen.row_at[points.b, points.h, points.row]
            return self._place(self.at(node, rows), node, place)
        match node:
            case Reduce(op="sum", x=Apply(op="mul", args=(weight, value))) if (
                not weight.is_vector and value.is_vector and value.axes <= _KEY_AXES
            ):
                weights = self.spread(weight, pairs)
                dense = weights.new_zeros(self.B * self.H * self.M * self.N)
                dense = dense.index_copy(0, self._pair_number(pairs), weights)
                sums = dense.view(self.B, self.H, self.M, self.N) @ self._dense_keys(value)
                return sums.flatten(0, 2)[self._row_number(rows)]
            case _:
                x = self.spread(node.x, pairs)
                place = self.seen.row_at[pairs.b, pairs.h, pairs.row]
                if node.op == "sum":
                    return x.new_zeros(len(rows), *x.shape[1:]).index_add(0, place, x)
                lowest = x.new_full((len(rows), *x.shape[1:]), float("-inf"))
                return lowest.scatter_reduce(0, place.view(-1, *[1] * (x.dim() - 1)).expand_as(x), x, "amax")

    def _cumsum(self, x: Node, at: Node, points: Points) -> Tensor:
        every = grid(self.B, self.H, None, self.N, self.device)
        found = self.spread(x, every)
        sums = found.view(self.B, self.H, self.N, *found.shape[1:]).cumsum(2)
        sums = torch.cat((sums.new_zeros(self.B, self.H, 1, *found.shape[1:]), sums), 2)
        return sums[points.b, points.h, (self.at(at, points) + 1).clamp(0, self.N)]

    def _windows(self, x: Node, length: int, stride: int) -> Tensor:
        """The means of a key expression over windows of tokens, ``[B, H, windows, ..]``."""
        if (x, self.seen) not in self.outer:
            every = grid(self.B, self.H, None, self.sizes["N"], self.device)
            found = self.spread(x, every)
            tokens = found.view(self.B, self.H, self.sizes["N"], *found.shape[1:])
            self.outer[x, self.seen] = window_means(tokens, 2, length, stride)
        return self.outer[x, self.seen]

    def _solve(self, pair: Node, x: Node, points: Points) -> Tensor:
        if self.M != self.N and contains(pair, _needs_a_row):
            raise ValueError(f"`solve` needs as many query rows as keys, found {self.M} and {self.N}")
        if contains(pair, lambda node: isinstance(node, Reduce) and node.over == "j"):
            raise ValueError("`solve` cannot use reductions over the visible keys")
        every = grid(self.B, self.H, None, self.N, self.device)
        right = self.spread(x, every).view(self.B, self.H, self.N, -1)
        before, lower = (self.seen, self.M), torch.ones(self.N, self.N, dtype=torch.bool, device=self.device).tril()
        self.seen, self.M = visible(lower.expand(self.B, self.H, -1, -1)), self.N
        matrix = self.spread(pair, self.seen.pairs)
        dense = matrix.new_zeros(self.B * self.H * self.N * self.N)
        dense = dense.index_copy(0, self._pair_number(self.seen.pairs), matrix)
        self.seen, self.M = before
        lower_triangle = dense.view(self.B, self.H, self.N, self.N)
        found: Tensor = torch.linalg.solve_triangular(lower_triangle, right, upper=False)
        return found[points.b, points.h, points.j]


def _needs_a_row(node: Node) -> bool:
    return isinstance(node, Token | Index) and node.name in {"q", "row"}


class _Elsewhere:
    """The nodes below which a walk at some points need not go."""

    def __init__(self, run: Run, points: Points) -> None:
        self.run, self.points = run, points

    def __contains__(self, node: object) -> bool:
        return isinstance(node, Node) and self.run.is_elsewhere(node, self.points)
