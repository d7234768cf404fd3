"""Derived backwards, run step by step on dense tensors in the words of the reference: the oracle of the derivation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attnc.analyse.gradient.backward import Backward, Contribution, Scatter, Walk
from attnc.analyse.gradient.derive import derive
from attnc.analyse.lower import stream_program
from attnc.ir.build import apply, index, read, reduce_keys
from attnc.ir.nodes import Index, Input, Node, Param, Read, Slice, State, Token
from attnc.ir.program import Program
from attnc.ir.specialize import specialize
from attnc.ir.traverse import postorder, substitute
from attnc.plan import Plan, TokenMap
from attnc.reference.interpreter import Run
from attnc.reference.points import Points


def gradients(
    program: Program,
    tokens: tuple[Tensor, Tensor, Tensor],
    inputs: Mapping[str, Tensor],
    params: Mapping[str, float],
    extents: Mapping[str, int],
    d_out: Tensor,
) -> dict[str, Tensor]:
    """The gradient of q, k, v and every real input and parameter, by name, from the derived backward."""
    program = specialize(program, tokens[0].shape[-1], tokens[2].shape[-1])
    plan = stream_program(program, keep_detach=True)
    backward = derive(plan)
    assert {f"saved_{name}" for name in backward.saved} <= {source.name for source in backward.reads}
    run = Run(program, tokens, known := dict(inputs), params, extents, torch.float64)
    known["d_out"] = d_out
    save(run, plan, known)
    execute(backward, run, known)
    found = {name: torch.zeros_like(x) for name, x in zip("qkv", tokens, strict=True)}
    found |= {name: torch.zeros_like(x) for name, x in inputs.items() if x.is_floating_point()}
    found |= {parameter.name: torch.zeros((), dtype=torch.float64) for parameter in program.parameters}
    for contribution in backward.contributions:
        _add(run, contribution, known[contribution.result.name], found[contribution.name])
    return found


def execute(backward: Backward, run: Run, known: dict[str, Tensor]) -> None:
    """Adds the result of every step to ``known``, which holds the inputs of ``run`` and what the backward reads."""
    for step in backward.steps:
        match step:
            case TokenMap(side="query"):
                known[step.result.name] = run.rows_to_tensor(step.expression, 0.0)
            case TokenMap():
                known[step.result.name] = _keys_to_tensor(run, run.spread(step.expression, run.seen.keys))
            case Walk(over="keys"):
                for one in step.sums:
                    summand = one.term if one.value is None else apply("mul", one.term, one.value)
                    known[one.result.name] = run.rows_to_tensor(reduce_keys("sum", summand), 0.0)
            case Scatter():
                dims = [run.constant(dim) for dim in step.result.dims]
                pairs = run.seen.pairs
                at = (pairs.b, pairs.h, *(run.spread(x, pairs) for x in step.indices))
                known[step.result.name] = torch.zeros(dims, dtype=run.dtype).index_put_(
                    at, run.spread(step.term, pairs), accumulate=True
                )
            case Walk():
                for one in step.sums:
                    summand = one.term if one.value is None else apply("mul", one.term, one.value)
                    known[one.result.name] = _sum_over_rows(run, run.spread(summand, run.seen.pairs))


def save(run: Run, plan: Plan, known: dict[str, Tensor]) -> None:
    """The final states of the forward, and its output."""
    reads: dict[Node, Node] = {}

    def final(root: Node) -> Node:
        for node in postorder(root):
            if isinstance(node, State) and node not in reads:
                reads[node] = _row_read(f"saved_{node.name}", node)
        return substitute(root, reads)

    for step in plan.passes:
        for one in step.statistics:
            known[f"saved_{one.name}"] = run.rows_to_tensor(reduce_keys(one.op, final(one.term)), 0.0)
        for one in step.accumulators:
            known[f"saved_{one.name}"] = run.rows_to_tensor(
                reduce_keys("sum", apply("mul", final(one.term), one.value)), 0.0
            )
    known["out"] = run.rows_to_tensor(final(plan.output), 0.0)


def _row_read(name: str, like: Node) -> Read:
    dims: Any = tuple(index(x) for x in ("b", "h", "row"))
    width = () if like.width is None else (like.width,)
    return read(Input(name, like.kind, (*dims, *width)), (*dims, *(None for _ in width)))


def _keys_to_tensor(run: Run, found: Tensor) -> Tensor:
    dense = found.new_zeros(run.B * run.H * run.N, *found.shape[1:])
    keys = run.seen.keys
    dense = dense.index_copy(0, (keys.b * run.H + keys.h) * run.N + _field(keys.j), found)
    return dense.view(run.B, run.H, run.N, *found.shape[1:])


def _sum_over_rows(run: Run, found: Tensor) -> Tensor:
    pairs = run.seen.pairs
    dense = found.new_zeros(run.B * run.H * run.N, *found.shape[1:])
    dense = dense.index_add(0, (pairs.b * run.H + pairs.h) * run.N + _field(pairs.j), found)
    return dense.view(run.B, run.H, run.N, *found.shape[1:])


def _add(run: Run, part: Contribution, result: Tensor, total: Tensor) -> None:
    """Adds a result to the gradient it is part of, wherever it was read."""
    if part.level == "pair":
        _add_scattered(run, part.at, result, total)
        return
    points = run.seen.rows if part.level == "query" else run.seen.keys
    cotangent = result[points.b, points.h, _field(points.row if part.level == "query" else points.j)]
    if part.at.is_vector and cotangent.dim() == 1:
        cotangent = cotangent[:, None].expand(-1, run.constant(part.at.width))  # type: ignore[arg-type]
    match part.at:
        case Param():
            total += cotangent.sum()
        case Read(indices=indices):
            at = tuple(run.spread(x, points) for x in indices if x is not None)
            total.index_put_(at, cotangent, accumulate=True)
        case Slice(x=Token(name=name), lo=lo, hi=hi):
            part_of = total[..., run.constant(lo) : run.constant(hi)]
            part_of.index_put_(_place(run, name, points), cotangent, accumulate=True)
        case Token(name=name):
            total.index_put_(_place(run, name, points), cotangent, accumulate=True)
        case _:
            raise AssertionError(part.at)


def _add_scattered(run: Run, at: Node, result: Tensor, total: Tensor) -> None:
    assert isinstance(at, Read)
    for b in range(run.B):
        for h in range(run.H):
            head = {"b": b, "h": h, "g": int(run.groups[h])}
            place = tuple(head[x.name] if isinstance(x, Index) and x.name in head else slice(None) for x in at.indices)
            total[place] += result[b, h]


def _place(run: Run, name: str, points: Points) -> tuple[Tensor, Tensor, Tensor]:
    if name == "q":
        return points.b, points.h, _field(points.row)
    return points.b, run.groups[points.h], _field(points.j)


def _field(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
