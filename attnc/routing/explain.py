"""Routes and branches in words, for ``attnc explain``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

from attnc.ir.nodes import Kind, Literal, Node, Pool, Window
from attnc.ir.printer import declaration, expression
from attnc.ir.program import Body, Program, Route
from attnc.ir.traverse import postorder
from attnc.routing.lower import Part
from attnc.routing.regroup import COST

CHOOSERS = {"query": "each query", "queries": "every {} queries together", "head": "each head", "keep": "each head"}


WORK = (
    ["tiles of queries walk over the tiles of keys in which any of them chose something"],
    [
        "where choices are local: tiles of queries walk over the tiles of keys in which any of them chose something",
        "where they are scattered: queries are sorted by the block they chose, tiles of them attend to one block each,",
        f"and a query's parts are merged by log-sum-exp; where that saves more than {COST} pairs a query",
    ],
)
"""Without and with regrouping."""


GATHERED = [
    "on GPUs, where lists are short: the keys of each query are gathered by number, for the heads that share a list",
    "at once; gradients of keys are added in any order, or by the other way where torch asks for determinism",
]
KEPT = ["the kept queries, and the chosen keys, are gathered into a small dense attention and its rows put back"]


def explain_parts(
    program: Program,
    parts: tuple[Part, ...],
    regrouped: Collection[str],
    gathered: Collection[str] = (),
    kept: Collection[str] = (),
    choosing: Mapping[tuple[str, int], str] = MappingProxyType({}),
    on_gpus: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """The steps before and after the attentions of a program: what chooses, what is pooled, how it is combined.

    ``regrouped`` are the parts whose queries may be regrouped by what they chose, ``gathered`` those whose keys may be
    gathered, ``kept`` those that keep queries; ``choosing`` says of routes, by part and place, what makes the choice,
    ``on_gpus`` of parts what is otherwise there.
    """
    several = len(parts) > 1
    sections = [
        f"{program.name}: {len(parts)} attention{'s, combined' if several else ', after its choices'}",
        *(
            _section(part, at, route, choosing.get((part.name, at), ""))
            for part in parts
            for at, route in enumerate(part.body.routes)
        ),
        *(
            _lines(f"Work of `{part.name}`" if part.name else "Work", _work(part, regrouped, gathered, kept))
            for part in parts
            if part.chosen
        ),
        *(_lines(f"On GPUs, `{name}`" if name else "On GPUs", list(lines)) for name, lines in on_gpus.items()),
        *(_pooled(part) for part in parts if part.value is not None),
    ]
    if several:
        lines = [f"output = {expression(program.body.output)}", "merge is one softmax, by log-sum-exps; a row that no"]
        lines[1] += " branch sees: output 0"
        sections.append(_lines("Combined, row by row", lines))
    return "\n\n".join(sections) + "\n"


def _lines(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _work(part: Part, regrouped: Collection[str], gathered: Collection[str], kept: Collection[str]) -> list[str]:
    if part.name in kept:
        return KEPT
    return [*(GATHERED if part.name in gathered else ()), *WORK[part.name in regrouped]]


def _section(part: Part, at: int, route: Route, choosing: str) -> str:
    where = f" of `{part.name}`" if part.name else ""
    lines = [*_route(part.body, at, route), *([choosing] if choosing else [])]
    return _lines(
        f"Route {at + 1}{where}", [*lines, f"kept as {declaration(part.chosen[at])}, a bit each, or as lists"]
    )


def _route(body: Body, at: int, route: Route) -> Iterator[str]:
    assert route.select is not None
    if route.queries == "keep":
        yield f"each head keeps its {expression(route.select.args[0])} queries of highest {_text(route.rank)}"
        yield "the others see nothing: output 0"
        return
    block = "single keys"
    if not (isinstance(route.keys_block, Literal) and route.keys_block.value == 1):
        block = f"blocks of {expression(route.keys_block)} keys"
    chooser = CHOOSERS[route.queries].format(expression(route.queries_block) if route.queries_block else "")
    yield f"{chooser} choose{'' if route.queries == 'queries' else 's'} among {block}"
    earlier = f" and route{'s' if at > 1 else ''} {', '.join(str(n + 1) for n in range(at))}" if at else ""
    if isinstance(body.mask, Literal) and not earlier:
        yield "every block is a candidate" + _among(route)
    else:
        mask = "" if isinstance(body.mask, Literal) else f" by the mask {expression(body.mask)}"
        yield f"a block is a candidate where at least one of its pairs is visible{mask}{earlier}{_among(route)}"
        yield "so a future block is none, a partly visible one is; inside a chosen block the mask still holds"
    if route.rank is not None:
        yield f"rank: {_text(route.rank)}"
        if any(isinstance(node, Pool) and node.over in "ij" for node in postorder(route.rank)):
            yield "a block is pooled over the tokens it has, at a ragged end too"
        if any(isinstance(node, Window) for node in postorder(route.rank)):
            yield "windows are whole, and take part where every key of theirs is visible to the chooser"
        if "h" not in route.rank.axes and "h" not in body.mask.axes:
            yield "all heads take the same"
    yield _selection(route)
    for taken, how in (
        (route.always, "before the ranked ones, counted with them"),
        (route.also, "besides, not counted"),
    ):
        if taken:
            yield f"taken {how}: {', '.join(_taken(name, node) for name, node in taken)}"


def _among(route: Route) -> str:
    return "" if route.candidates is None else f", and {_text(route.candidates)}"


def _selection(route: Route) -> str:
    assert route.select is not None
    rule, options = route.select, dict(route.select.options)
    arg = expression(rule.args[0])
    scope = {"head": ", over all choosers of a head", "heads": ", over all heads"}.get(str(options.get("scope")), "")
    match rule.how:
        case "top" if rule.args[0].kind is Kind.REAL:
            return f"selected: the highest {arg} of the candidates, at least one{scope}; ties to the lower index"
        case "top":
            return f"selected: the {arg} of highest rank{scope}; ties to the lower index, all where there are fewer"
        case "mass":
            crossing = "the one that reaches it included" if options["crossing"] == "include" else "without passing it"
            least = options["least"]
            assert isinstance(least, Node)
            return (
                f"selected: in descending order up to {arg} of the sum{scope}, {crossing}, at least {expression(least)}"
            )
        case "above":
            return f"selected: all of rank above {arg}"
        case _:
            return f"selected: those given, {arg}; what is no block is left out"


def _taken(name: str, node: Node | None) -> str:
    match name, node:
        case "self", _:
            return "its own block"
        case (("first" | "last"), Node()):
            return f"the {name} {expression(node)} it sees"
        case _:
            return _text(node)


def _text(node: Node | None) -> str:
    return "" if node is None else expression(node)


def _pooled(part: Part) -> str:
    assert part.body.windows is not None
    length, stride = map(expression, part.body.windows)
    heads = "key head" if part.per_group else "query head"
    lines = [f"keys: whole windows of {length} tokens, {stride} apart; made once for each {heads}"]
    lines += [f"{name} = {expression(node)}" for name, node in (("k", part.key), ("v", part.value)) if node is not None]
    return _lines(f"Windows of `{part.name}`" if part.name else "Windows", lines)
