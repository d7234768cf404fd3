"""From a program with routes, branches or windows to plain programs that read what was chosen as an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnc.analyse.mask.block_lists import in_block_lists
from attnc.ir import build
from attnc.ir.build import apply, literal
from attnc.ir.nodes import BranchOutput, Index, Input, Kind, Literal, Node, Param, Read, Size, Window
from attnc.ir.program import LISTED, Body, Listed, Parameter, Program, Route
from attnc.ir.traverse import postorder, substitute
from attnc.plan import NotLowerable
from attnc.routing.choice import WORD

LONGEST = 64
"""Blocks of the longest lists."""

LISTS = "lists__"
"""The input that holds lists of blocks."""

TOKENS = "tokens__"
"""The parameter that says how many tokens there are where the keys are windows of them."""


CHOSEN = "chosen__"
"""What the inputs with words of choices begin with."""

NUMBERS, COUNTS = "numbers__", "counts__"
"""The inputs that hold lists of keys."""


@dataclass(frozen=True, slots=True)
class Part:
    """One attention. ``plain`` has no routes: it reads the choice of route ``n`` as its input ``chosen[n]``.

    ``whole`` is the program it is a part of, ``bare`` is ``plain`` without its choices. ``visible[n]`` are the pairs
    among which route ``n`` chooses. ``listed`` is ``plain`` where each query chooses a few blocks, with the lists of
    these as the input ``LISTS``. ``routed`` is the program of the choice: the body with its one route, and what that
    reads.

    Where the keys are windows, ``key`` and ``value`` are what stands for k and v, and ``per_group`` says whether they
    are the same for all query heads of a key head.
    """

    name: str
    whole: Program
    body: Body
    plain: Program
    bare: Program
    chosen: tuple[Input, ...]
    visible: tuple[Node, ...] = ()
    listed: Program | None = None
    routed: Program | None = None
    key: Window | None = None
    value: Window | None = None
    per_group: bool = True


def with_lists(program: Program, heads: str) -> Program:
    """A plain program whose rows see the keys that lists give, ``heads`` (``H``, ``G`` or nothing) having one each.

    The lists replace the mask.
    """
    dims: tuple[Node, ...] = (build.size("B"), build.size(heads) if heads else literal(1), build.size("M"))
    listed = Listed(Input(NUMBERS, Kind.INT, (*dims, build.size("L"))), Input(COUNTS, Kind.INT, dims))
    made = program_of(program, "", replace(program.body, mask=LISTED), (listed.numbers, listed.counts))
    return replace(made, listed=listed)


def is_choice(source: Input) -> bool:
    """Whether an input holds what routes chose."""
    return source.kind is Kind.INT and (source.name in (NUMBERS, COUNTS) or source.name.startswith(CHOSEN))


def is_plain(program: Program) -> bool:
    """Whether a program is one attention over the tokens, without routes."""
    return not program.branches and not program.body.routes and program.body.windows is None


def parts_of(program: Program) -> tuple[Part, ...]:
    """The attentions of a program: its branches, or itself.

    Raises:
        NotLowerable: a branch over windows uses what only tokens have.
    """
    return tuple(_part(program, name, body) for name, body in program.branches or (("", program.body),))


def combines(program: Program) -> tuple[BranchOutput, ...]:
    """What the output of a program with branches is made of."""
    return tuple(node for node in postorder(program.body.output) if isinstance(node, BranchOutput))


def _part(program: Program, name: str, body: Body) -> Part:
    if body.windows is not None:
        return _windowed(program, name, body)
    chosen: list[Input] = []
    mask = body.mask
    varies = body.mask.axes
    visible: list[Node] = []
    for at, route in enumerate(body.routes):
        visible.append(mask)
        for root in route.roots():
            varies |= root.axes
        chosen.append(_chosen_input(route, at, varies))
        mask = apply("and", mask, _bit(route, chosen[-1]))
    plain = program_of(program, name, replace(body, mask=mask, routes=()), tuple(chosen))
    bare = program_of(program, name, replace(body, routes=()), ())
    routed = _routed(program, name, body) if len(body.routes) == 1 else None
    listed = _listed(program, name, body)
    return Part(name, program, body, plain, bare, tuple(chosen), tuple(visible), listed, routed)


def _listed(program: Program, name: str, body: Body) -> Program | None:
    if len(body.routes) != 1:
        return None
    (route,) = body.routes
    most, block = longest(route), route.keys_block
    if route.queries != "query" or most is None or most > LONGEST or not isinstance(block, Literal) or block.value == 1:
        return None
    source = Input(LISTS, Kind.INT, (*map(build.size, "BHM"), literal(most)))
    mask = apply("and", body.mask, in_block_lists(source, int(block.value)))
    return program_of(program, name, replace(body, mask=mask, routes=()), (source,))


def _routed(program: Program, name: str, body: Body) -> Program:
    (route,) = body.routes
    roots = [body.mask, *route.roots(), program.group]
    used = {node.input.name for node in postorder(*roots) if isinstance(node, Read)}
    given = {node.name for node in postorder(*roots) if isinstance(node, Param)}
    return replace(
        program,
        name=f"{program.name}_{name}_choice" if name else f"{program.name}_choice",
        inputs=tuple(x for x in program.inputs if x.name in used),
        parameters=tuple(x for x in program.parameters if x.name in given),
        body=body,
        branches=(),
    )


def longest(route: Route) -> int | None:
    """The most blocks that a chooser can choose, where the route says so as a number."""
    rule = route.select
    if rule is None or route.queries == "keep":
        return None
    counted = [_taken(name, node) for name, node in route.always]
    besides = [_taken(name, node) for name, node in route.also]
    if rule.how == "given":
        width = rule.args[0].width
        chosen = int(width.value) if isinstance(width, Literal) else None
    else:
        chosen = _whole(rule.args[0]) if rule.how == "top" else None
    if chosen is None or None in counted or None in besides or dict(rule.options).get("scope") in ("head", "heads"):
        return None
    first, more = (sum(n for n in taken if n is not None) for taken in (counted, besides))
    return max(1, (chosen + first if rule.how == "given" else max(chosen, first)) + more)


def _taken(name: str, node: Node | None) -> int | None:
    """How many blocks an item of ``always`` or ``also`` takes of a chooser that is one query."""
    return 1 if name == "self" else None if name == "where" else _whole(node)


def _whole(node: Node | None) -> int | None:
    known = isinstance(node, Literal) and node.kind is Kind.INT
    return max(0, int(node.value)) if known else None  # type: ignore[union-attr]


def _chosen_input(route: Route, at: int, varies: frozenset[str]) -> Input:
    """The words of a choice, ``[B, H, choosers, words]`` without the axes along which it cannot vary."""
    M, N = build.size("M"), build.size("N")
    dims: list[Node] = [build.size(size) for size, axis in (("B", "b"), ("H", "h")) if axis in varies]
    match route.queries:
        case "query" | "keep":
            dims.append(M)
        case "queries":
            assert route.queries_block is not None
            first, last = (apply("floordiv", apply("sub", N, size), route.queries_block) for size in (M, literal(1)))
            dims.append(apply("add", apply("sub", last, first), literal(1)))
        case _:
            pass
    keys = apply("mul", route.keys_block, literal(WORD))
    up = apply("sub", apply("add", N, keys), literal(1))
    dims.append(literal(1) if route.queries == "keep" else apply("floordiv", up, keys))
    return Input(f"{CHOSEN}{at}", Kind.INT, tuple(dims))


def _bit(route: Route, source: Input) -> Node:
    """Whether the block of the key is chosen by the chooser of the query."""
    names = {dim.name for dim in source.dims[:-1] if isinstance(dim, Size)}
    indices: list[Node] = [build.index(axis) for size, axis in (("B", "b"), ("H", "h")) if size in names]
    match route.queries:
        case "query" | "keep":
            indices.append(build.index("row"))
        case "queries":
            assert route.queries_block is not None
            i, row = build.index("i"), build.index("row")
            mine, first = (apply("floordiv", at, route.queries_block) for at in (i, apply("sub", i, row)))
            indices.append(apply("sub", mine, first))
        case _:
            pass
    if route.queries == "keep":
        return _is_set(build.read(source, (*indices, literal(0))))
    block: Node = build.index("j")
    if not (isinstance(route.keys_block, Literal) and route.keys_block.value == 1):
        block = apply("floordiv", block, route.keys_block)
    word, shift = apply("floordiv", block, literal(WORD)), apply("mod", block, literal(WORD))
    return _is_set(apply("shr", build.read(source, (*indices, word)), shift))


def _is_set(word: Node) -> Node:
    return apply("eq", apply("bitand", word, literal(1)), literal(1))


def _windowed(program: Program, name: str, body: Body) -> Part:
    """A body over windows: they are made before, and passed as k and v of another length."""
    windows = [node for _, root in body.roots() for node in postorder(root) if isinstance(node, Window)]
    values = [node for node in postorder(body.value) if isinstance(node, Window)]
    keys = list(dict.fromkeys(node for node in windows if node not in values))
    if len(values) != 1 or len(keys) > 1:
        raise NotLowerable("the keys of these windows are made of several things", body.score)
    for window, size in ((values[0], "E"), *((key, "D") for key in keys)):
        if window.width is not build.size(size):
            raise NotLowerable(f"these windows have a width other than {size}", window)
    per_group = not any(_uses_heads(node) for node in (*values, *keys))
    tokens = build.param(TOKENS, Kind.INT)
    position = apply("add", apply("sub", build.index("i"), build.size("N")), tokens)
    became: dict[Node, Node] = {values[0]: build.token("v"), **{key: build.token("k") for key in keys}}
    became |= {build.size("N"): tokens, build.index("i"): position}
    plain = body.map(lambda node: substitute(node, became))
    inner = program_of(replace(program, space=()), name, plain, ())
    for _, root in inner.body.roots():
        for node in postorder(root):
            if isinstance(node, Size) and node.name not in {*"BHGMNDE"}:
                raise NotLowerable("windows have no place on a grid", root)
            if isinstance(node, Read) and build.size("N") in node.input.dims:
                raise NotLowerable("an input with a value for each token is read at windows", node)
    inner = replace(inner, parameters=(*inner.parameters, Parameter(TOKENS, Kind.INT, None)))
    if not per_group:
        inner = replace(inner, group=build.index("h"))
    key, value = keys[0] if keys else None, values[0]
    return Part(name, program, body, inner, inner, (), key=key, value=value, per_group=per_group)


def _uses_heads(node: Node) -> bool:
    return any(isinstance(part, Index) and part.name == "h" for part in postorder(node))


def program_of(program: Program, name: str, body: Body, chosen: Sequence[Input]) -> Program:
    """``program`` with one body, and the inputs and parameters that it uses."""
    nodes = list(postorder(*(node for _, node in body.roots()), program.group))
    used = {node.input.name for node in nodes if isinstance(node, Read)}
    given = {node.name for node in nodes if isinstance(node, Param)}
    return replace(
        program,
        name=f"{program.name}_{name}" if name else program.name,
        inputs=(*(x for x in program.inputs if x.name in used), *chosen),
        parameters=tuple(x for x in program.parameters if x.name in given),
        body=body,
        branches=(),
    )


def vanishes(output: Node) -> bool:
    """Whether an output is surely 0 in a row that no branch sees."""

    def is_free(node: Node) -> bool:
        return not any(isinstance(part, BranchOutput) for part in postorder(node))

    match output:
        case BranchOutput():
            return True
        case _ if output.children and is_free(output):
            return False
        case _:
            parts = output.children
            op = getattr(output, "op", "")
            if op in ("add", "sub", "neg"):
                return all(map(vanishes, parts))
            if op == "mul":
                return any(vanishes(a) and is_free(b) for a, b in (parts, parts[::-1]))
            return op == "div" and vanishes(parts[0]) and is_free(parts[1])
