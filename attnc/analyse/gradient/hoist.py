"""Token maps of a backward: the vector work of one side out of the terms of its walks and scatters.

Afterwards the operands of a dot product of row and key, and the values of walks, are the raw row of a token (or a
part of it), of ``d_out``, ``out`` and saved states, of a result, or of a token map. What a pair term needs of a row or
a key is a number that a token map holds.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.analyse.gradient.backward import Backward, Step, Walk, map_step, results_of
from attnc.analyse.hoist import Hoister, is_plain, pull_scalars
from attnc.ir.build import index, read
from attnc.ir.nodes import Input, Node, Read
from attnc.ir.traverse import rewrite
from attnc.plan import TokenMap


def hoist_backward(backward: Backward) -> Backward:
    """The backward with token maps before the first step that reads them, and without maps that only copy a sum.

    The mask of its plan reads token maps as well; those come first.
    """
    backward = _without_copies(backward)
    program = backward.plan.program
    own = {source.name for source in backward.reads}
    own |= {result.name for step in backward.steps for result in results_of(step)}
    declared = {*(x.name for x in program.inputs), *(x.name for x in program.parameters), *program.extents}

    def plain(node: Node) -> bool:
        return is_plain(node) or (isinstance(node, Read) and node.input.name in own)

    hoister = Hoister(own | declared, plain)
    mask = hoister.hoist(backward.plan.mask)
    steps: list[Step] = list(hoister.maps.values())
    for step in backward.steps:
        if not isinstance(step, TokenMap):
            known = len(hoister.maps)
            step = map_step(step, lambda root: hoister.hoist(pull_scalars(root, plain)))
            steps.extend(list(hoister.maps.values())[known:])
        steps.append(step)
    return replace(backward, plan=replace(backward.plan, mask=mask), steps=tuple(steps))


def _without_copies(backward: Backward) -> Backward:
    """Sums that a token map would only copy are written to where the copy would be."""
    sums = {result for step in backward.steps if isinstance(step, Walk) for result in results_of(step)}
    renamed: dict[Input, Input] = {}
    copies: list[Step] = []
    for step in backward.steps:
        if isinstance(step, TokenMap) and (source := _copied(step)) in sums and source not in renamed:
            renamed[source] = step.result
            copies.append(step)

    def moved(node: Node) -> Node:
        return read(renamed[node.input], node.indices) if isinstance(node, Read) and node.input in renamed else node

    steps: list[Step] = []
    for step in backward.steps:
        if step not in copies:
            step = map_step(step, lambda root: rewrite(root, moved))
            if isinstance(step, Walk):
                step = replace(step, sums=tuple(replace(s, result=renamed.get(s.result, s.result)) for s in step.sums))
            steps.append(step)
    return replace(backward, steps=tuple(steps))


def _copied(step: TokenMap) -> Input | None:
    """What the map is a copy of."""
    match step.expression:
        case Read(input=source, indices=(b, h, at, *rest)) if source.dims == step.result.dims:
            own = (index("b"), index("h"), index("row" if step.side == "query" else "j"))
            return source if (b, h, at) == own and rest in ([], [None]) else None
    return None
