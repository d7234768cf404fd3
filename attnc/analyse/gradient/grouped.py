"""A backward whose sums over rows come for each key head, with the query heads of the group already in them."""

from __future__ import annotations

from dataclasses import replace

from attnc.analyse.gradient.backward import Backward, Step, Sum, Walk, map_step, read_by, results_of
from attnc.analyse.gradient.reverse import NotDifferentiable
from attnc.ir.build import index, read, size
from attnc.ir.nodes import Input, Node, Read, Token
from attnc.ir.traverse import contains, postorder, substitute
from attnc.plan import TokenMap


def sum_groups(backward: Backward) -> Backward:
    """``backward`` with what its walks over the rows sum, and all that follows from it, ``[B, G, N]`` instead of
    ``[B, H, N]``: without a tensor of keys for each query head.

    Raises:
        NotDifferentiable: something that is multiplied to such a sum, or read at its place, differs by query head.
    """
    grouped: dict[str, Input] = {}
    steps: list[Step] = []

    def of_group(node: Node) -> Node:
        return substitute(node, {x: _at(grouped[x.input.name]) for x in _reads_of(node, grouped)})

    for step in backward.steps:
        step = map_step(step, of_group)
        follows = not grouped.keys().isdisjoint(read_by(step))
        match step:
            case Walk(over="rows", sums=sums):
                steps.append(Walk("rows", tuple(Sum(_grouped(x.result, grouped), x.term, x.value) for x in sums)))
            case TokenMap(side="key", expression=expression, result=result) if follows:
                if contains(expression, _differs_by_head):
                    raise NotDifferentiable("a factor of this gradient differs by query head", expression)
                steps.append(TokenMap(_grouped(result, grouped), "key", "G", expression))
            case _ if follows:
                raise NotDifferentiable(
                    "a sum over the rows of a key is needed for each query head", backward.plan.output
                )
            case _:
                steps.append(step)
    parts = []
    for part in backward.contributions:
        total = grouped.get(part.result.name)
        if total is not None and contains(part.at, lambda node: node is index("h")):
            raise NotDifferentiable("this gradient is one for each query head", part.at)
        parts.append(part if total is None else replace(part, result=total))
    assert {x.name for step in steps for x in results_of(step)} >= {part.result.name for part in parts}
    return replace(backward, steps=tuple(steps), contributions=tuple(parts))


def _grouped(result: Input, grouped: dict[str, Input]) -> Input:
    made = replace(result, dims=(result.dims[0], size("G"), *result.dims[2:]))
    grouped[result.name] = made
    return made


def _reads_of(root: Node, grouped: dict[str, Input]) -> list[Read]:
    return [node for node in postorder(root) if isinstance(node, Read) and node.input.name in grouped]


def _at(source: Input) -> Read:
    rest = (None,) * (len(source.dims) - 3)
    return read(source, (index("b"), index("g"), index("j"), *rest))


def _differs_by_head(node: Node) -> bool:
    return node is index("h") or (isinstance(node, Token) and node.name == "q")
