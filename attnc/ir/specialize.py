"""Sets the head widths of a program: D and E become numbers, and every width is checked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attnc.grammar.source import Span
from attnc.ir import build
from attnc.ir.build import IllTyped
from attnc.ir.fold import fold
from attnc.ir.nodes import BranchOutput, Input, Node, Read, Size, Token
from attnc.ir.program import Program
from attnc.ir.traverse import postorder, rewrite


def specialize(program: Program, D: int, E: int) -> Program:
    """``program`` for q and k of width ``D`` and v of width ``E``, constants folded.

    Raises:
        IllTyped: widths do not fit together; its ``span`` says where.
    """
    widths = {"D": build.literal(D), "E": build.literal(E)}
    memo: dict[Node, Node] = {}

    def set_widths(node: Node) -> Node:
        match node:
            case Size(name="D" | "E" as name):
                return widths[name]
            case Token(name=name):
                return build.token(name, widths["E" if name == "v" else "D"])
            case BranchOutput(names=names):
                return build.branch_output(names, widths["E"])
            case Read(input=source, indices=indices):
                dims = tuple(rewrite(dim, set_widths, memo) for dim in source.dims)
                return build.read(Input(source.name, source.kind, dims), indices)
            case _:
                return fold(node)

    try:
        special = program.map(lambda root: rewrite(root, set_widths, memo))
    except IllTyped as error:
        error.span = error.span or nearest_span(program, error.node)
        raise
    return replace(special, widths=(D, E), spans=carried_spans(program.spans, memo))


def carried_spans(spans: Mapping[Node, Span], became: Mapping[Node, Node]) -> dict[Node, Span]:
    """Spans of what the nodes with ``spans`` became; the first of several wins."""
    carried: dict[Node, Span] = {}
    for node, span in spans.items():
        carried.setdefault(became.get(node, node), span)
    return carried


def nearest_span(program: Program, node: Node | None) -> Span | None:
    """Where ``node`` stands, or else the smallest expression around it that stands somewhere."""
    around = {node}
    for outer in postorder(*(root for _, root in program.roots())):
        if outer in around or not around.isdisjoint(outer.children):
            around.add(outer)
            if outer in program.spans:
                return program.spans[outer]
    return None
