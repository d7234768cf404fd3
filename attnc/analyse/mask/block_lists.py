"""Masks that are lists: the block of a key is one of those in a list of its query."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from attnc.analyse.mask.cells import conjuncts
from attnc.ir.build import apply, index, literal, read
from attnc.ir.nodes import Apply, Index, Input, Literal, Node, Read


@dataclass(frozen=True, slots=True)
class BlockLists:
    """A mask as ``rest`` and: ``j // block`` is one of ``source[b, h, row, 0 .. most - 1]``."""

    rest: Node
    source: Input
    block: int
    most: int


def in_block_lists(source: Input, block: int) -> Node:
    """That the block of a key is in the list of its query. Numbers that are no block are no block of a key."""
    last = source.dims[-1]
    assert isinstance(last, Literal), "lists have a static length"
    mine = apply("floordiv", index("j"), literal(block))
    at = (index("b"), index("h"), index("row"))
    found = [apply("eq", read(source, (*at, literal(n))), mine) for n in range(int(last.value))]
    while len(found) > 1:
        found = [reduce(lambda a, b: apply("or", a, b), found[n : n + 2]) for n in range(0, len(found), 2)]
    return found[0]


def block_lists_of(mask: Node) -> BlockLists | None:
    """What is listed in a mask; ``None`` if nothing is, or not by all of one list."""
    parts = conjuncts(mask)
    for at, part in enumerate(parts):
        if (found := _list(part)) is not None:
            source, block = found
            rest: Node = literal(True)
            for n, other in enumerate(parts[:at] + parts[at + 1 :]):
                rest = apply("and", rest, other) if n else other
            assert isinstance(source.dims[-1], Literal)
            return BlockLists(rest, source, block, int(source.dims[-1].value))
    return None


def _list(node: Node) -> tuple[Input, int] | None:
    places: dict[tuple[Input, int], set[int]] = {}
    stack = [node]
    while stack:
        match stack.pop():
            case Apply(op="or", args=args):
                stack.extend(args)
            case Apply(
                op="eq",
                args=(
                    Read(
                        input=source,
                        indices=(Index(name="b"), Index(name="h"), Index(name="row"), Literal(value=int(place))),
                    ),
                    Apply(op="floordiv", args=(Index(name="j"), Literal(value=int(block)))),
                ),
            ) if block > 0:
                places.setdefault((source, block), set()).add(place)
            case _:
                return None
    if len(places) != 1:
        return None
    ((source, block), found), *_ = places.items()
    last = source.dims[-1]
    whole = isinstance(last, Literal) and found == set(range(int(last.value)))
    return (source, block) if whole else None
