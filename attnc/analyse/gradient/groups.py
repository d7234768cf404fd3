"""Gradients of keys and values summed over the query heads of a group inside the walks that make them.

A derived backward writes what a key gets from each query head apart. Where all of a key gets the sum of these and
nothing else, the heads can be summed while the rows are: sums then have a head for each key head, ``[B, G, N, ...]``.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from attnc.analyse.gradient.backward import Backward, Contribution, Step, Walk, map_step, read_by, results_of
from attnc.analyse.mask.block_lists import block_lists_of
from attnc.ir.build import index, literal, read, size
from attnc.ir.nodes import Apply, Dot, Index, Input, Literal, MatVec, Node, Read, Reduce, Rope, Slice, Token
from attnc.ir.program import DEFAULT_GROUP
from attnc.ir.traverse import postorder, rewrite
from attnc.plan import TokenMap


def sum_groups(backward: Backward) -> Backward:
    """The backward with walks over the rows summed over the query heads of a group, where that is the same.

    Sums that stay ``[B, H, N, ...]`` are those that something reads by query head, those that are not summed as they
    are (the gradient of a key may depend on them otherwise than linearly), all sums of a walk with such a one, and all
    where the spec has `groups` of its own or where each query head lists the blocks it sees.
    """
    if backward.plan.program.group is not DEFAULT_GROUP or block_lists_of(backward.plan.mask) is not None:
        return backward
    parts = {part.result: part for part in backward.contributions}
    walks = [step for step in backward.steps if isinstance(step, Walk) and step.over == "rows"]
    candidates = [step for step in backward.steps if isinstance(step, TokenMap) and step.side == "key"]
    grouped = {one.result for walk in walks for one in walk.sums}
    while True:
        maps = {step.result for step in candidates if _is_summed(step, parts, grouped)}
        left = [walk for walk in walks if all(_readers(one.result, backward) <= maps for one in walk.sums)]
        if (kept := {result for walk in left for result in results_of(walk)}) == grouped:
            break
        grouped &= kept
    renamed = {result: replace(result, dims=_by_group(result)) for result in grouped | maps}

    def regrouped(node: Node) -> Node:
        if isinstance(node, Read) and node.input in renamed:
            b, _, *rest = node.indices
            return read(renamed[node.input], (b, index("g"), *rest))
        return node

    steps: list[Step] = []
    for step in backward.steps:
        step = map_step(step, lambda root: rewrite(root, regrouped))
        match step:
            case Walk(sums=sums):
                step = replace(step, sums=tuple(replace(x, result=renamed.get(x.result, x.result)) for x in sums))
            case TokenMap(result=result) if result in renamed:
                step = replace(step, result=renamed[result], per="G")
        steps.append(step)
    contributions = tuple(replace(x, result=renamed.get(x.result, x.result)) for x in backward.contributions)
    return replace(backward, steps=tuple(steps), contributions=contributions)


def is_grouped(step: Walk) -> bool:
    """Whether the sums of a walk are over the query heads of a group too."""
    return any(one.result.dims[1] is size("G") for one in step.sums)


def _by_group(result: Input) -> tuple[Node, ...]:
    batch, _, *rest = result.dims
    return (batch, size("G"), *rest)


def _readers(result: Input, backward: Backward) -> set[Input]:
    """What is made of a result."""
    return {made for step in backward.steps if result.name in read_by(step) for made in results_of(step)}


def _is_summed(step: TokenMap, parts: dict[Input, Contribution], grouped: Container[Input]) -> bool:
    """Whether a map is linear in sums, nothing else in it varies by query head, and its result is summed by group."""
    part = parts.get(step.result)
    return part is not None and _is_of_key(part.at) and _degree(step.expression, grouped) == 1


def _is_of_key(at: Node) -> bool:
    """Whether each key head has a place of its own there, or all heads share one."""
    match at:
        case Token() | Slice(x=Token()):
            return True
        case Read(indices=indices):
            return all(one is None or isinstance(one, Literal) or one in (index("b"), index("g"), index("j"))
                       for one in indices)  # fmt: skip
    return False


def _degree(root: Node, grouped: Container[Input]) -> int | None:
    """1 if an expression is linear in ``grouped``, 0 if it is the same for the heads of a group, ``None`` otherwise."""
    degrees: dict[Node, int | None] = {}
    for node in postorder(root):
        match node:
            case Read(input=source) if source in grouped:
                degrees[node] = 1
            case Index(name="h"):
                degrees[node] = None
            case _:
                degrees[node] = _composed(node, [degrees[child] for child in node.children])
    return degrees[root]


def _composed(node: Node, degrees: list[int | None]) -> int | None:
    if None in degrees:
        return None
    if not any(degrees):
        return 0
    match node, degrees:
        case (Apply(op="add" | "sub"), [1, 1]) | (Apply(op="neg"), [1]):
            return 1
        case (Apply(op="mul") | Dot(), [1, 0] | [0, 1]) | (Apply(op="div"), [1, 0]) | (Reduce(op="sum", over="d"), [1]):
            return 1
        case (Slice() | Rope() | MatVec(), [1, *rest]) if not any(rest):
            return 1
        case (Apply(op="where", args=(_, *branches)), [0, *rest]):
            linear = (degree or branch is literal(0.0) for branch, degree in zip(branches, rest, strict=True))
            return 1 if all(linear) else None
    return None
