"""Expressions and programs as text, in the notation of the language; :mod:`attnc.ir.reader` reads it back.

What the language leaves implicit is spelled out: ``real(x)`` where an int becomes real, ``$name`` for a state of a
plan, ``$name[:width]`` for one that is a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count

from attnc.ir.nodes import (
    Apply,
    Bound,
    BranchOutput,
    Cumsum,
    Dot,
    Index,
    Input,
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
    Solve,
    State,
    Token,
    Total,
    Window,
)
from attnc.ir.ops import OPS
from attnc.ir.program import Body, Parameter, Program, Route
from attnc.ir.traverse import postorder

ATOM = 100
"""Binding power of what never needs parentheses."""

REDUCTIONS = {
    ("sum", "j"): "rowsum",
    ("max", "j"): "rowmax",
    ("sum", "d"): "sum_d",
    ("max", "d"): "max_d",
    ("sum", "J"): "sum_J",
    ("max", "J"): "max_J",
    ("sum", "w"): "sum_W",
    ("max", "w"): "max_W",
}

_INLINE_DEPTH = 6
_WIDEST = 400
_ALL = 1_000


def expression(node: Node, names: Mapping[Node, str] | None = None, depth: int | None = None) -> str:
    """``node`` in the language's notation.

    Args:
        node: what to print.
        names: nodes to print by name instead.
        depth: how many levels to show before ``…``. All by default, or a few if that would be very long.
    """
    names = names or {}
    if depth is None:
        depth = _ALL if _within(node, names, _WIDEST) else _INLINE_DEPTH
    return _text(node, names, depth)[0]


def _within(root: Node, names: Mapping[Node, str], most: int) -> bool:
    """Whether the tree under ``root``, shared parts counted every time, has at most ``most`` nodes."""
    sizes: dict[Node, int] = {}
    for node in postorder(root, stop=names):
        sizes[node] = 1 if node in names else min(most + 1, 1 + sum(sizes[child] for child in node.children))
    return sizes[root] <= most


def _text(node: Node, names: Mapping[Node, str], depth: int) -> tuple[str, int]:
    """The text and its binding power."""
    if node in names:
        return names[node], ATOM
    if depth == 0 and node.children:
        return "…", ATOM

    def show(child: Node, least: int = 0) -> str:
        text, binding = _text(child, names, depth - 1)
        return text if binding >= least else f"({text})"

    def call(name: str, *args: Node) -> tuple[str, int]:
        return f"{name}({', '.join(map(show, args))})", ATOM

    match node:
        case Literal(value=value):
            text = str(value).lower() if isinstance(value, bool) else repr(value)
            return text, OPS["neg"].binding if text.startswith("-") else ATOM
        case Size(name=name) | Index(name=name) | Param(name=name) | Token(name=name):
            return name, ATOM
        case State(name=name):
            return f"${name}" + (f"[:{show(node.width)}]" if node.width else ""), ATOM
        case BranchOutput(names=branches):
            return f"merge({', '.join(branches)})", ATOM
        case Read(input=source, indices=indices):
            return f"{source.name}[{', '.join(':' if at is None else show(at) for at in indices)}]", ATOM
        case Apply(op=op, args=args):
            return _operation(op, args, show)
        case Dot(a=a, b=b):
            return call("dot", a, b)
        case Reduce(op=op, over=over, x=x):
            return call(REDUCTIONS[op, over], x)
        case Pool(op=op, over=over, x=x):
            return call(f"{op}_{over}", x)
        case Window(axis=axis):
            return call(f"window_{axis}", *node.children)
        case Bound(level=level, extent=extent):
            return f"bound({level}, {show(extent)})", ATOM
        case Total(x=x, index=index):
            return call("total", x, index)
        case Slice(x=x, lo=lo, hi=hi):
            return f"{show(x, ATOM)}[{show(lo)}:{show(hi)}]", ATOM
        case Rope() | MatVec() | Cumsum() | Solve():
            return call({Rope: "rope", MatVec: "matmul", Cumsum: "cumsum", Solve: "solve"}[type(node)], *node.children)
    raise AssertionError(f"a node of unknown type {type(node).__name__}")


def _operation(name: str, args: tuple[Node, ...], show: Callable[[Node, int], str]) -> tuple[str, int]:
    op = OPS[name]
    if name == "where":
        condition, then, otherwise = args
        return f"{show(then, 1)} if {show(condition, 1)} else {show(otherwise, 0)}", op.binding
    if op.symbol is None:
        return f"{name}({', '.join(show(arg, 0) for arg in args)})", ATOM
    if op.arity == 1:
        operand = show(args[0], op.binding)
        if name == "neg" and operand[0] in "-0123456789.":
            operand = f"({operand})"
        return (f"{op.symbol} {operand}" if op.symbol.isalpha() else f"{op.symbol}{operand}"), op.binding
    left = op.binding + (name == "pow" or op.symbol in {"<", "<=", ">", ">=", "==", "!="})
    return f"{show(args[0], left)} {op.symbol} {show(args[1], op.binding + 1)}", op.binding


def listing(roots: Iterable[Node], prefix: str = "%") -> tuple[list[str], dict[Node, str]]:
    """Numbered lines ``%n = ...`` for what is shared or deeply nested under ``roots``, and the names they give.

    Reads at plain positions are repeated rather than named.
    """
    uses: dict[Node, int] = {}
    order = list(postorder(*dict.fromkeys(roots)))
    for node in order:
        for child in node.children:
            uses[child] = uses.get(child, 0) + 1
    for root in roots:
        uses[root] = uses.get(root, 0) + 1
    lines: list[str] = []
    names: dict[Node, str] = {}
    depths: dict[Node, int] = {}
    only_read = {node.matrix for node in order if isinstance(node, MatVec)}
    numbers = count()
    for node in order:
        depths[node] = 1 + max((depths[child] for child in node.children), default=-1)
        if isinstance(node, Read) and (depths[node] == 1 or node in only_read):
            continue
        if depths[node] and (uses[node] > 1 or depths[node] > _INLINE_DEPTH):
            name = f"{prefix}{next(numbers)}"
            lines.append(f"{name} = {expression(node, names, _ALL)}")
            names[node] = name
            depths[node] = 0
    return lines, names


def print_program(program: Program) -> str:
    """The whole program. Equal programs print alike, and :func:`attnc.ir.reader.read_program` gives them back."""
    return "\n".join(_program_lines(program)) + "\n"


def _program_lines(program: Program) -> Iterator[str]:
    yield f"program {program.name}"
    if program.widths:
        yield "widths D={} E={}".format(*program.widths)
    for declared in program.inputs:
        yield f"input {declaration(declared)}"
    for given in program.parameters:
        yield f"param {parameter(given)}"
    if program.listed:
        yield f"listed {program.listed.numbers.name} {program.listed.counts.name}"
    if program.space:
        yield f"space ({', '.join(f'{name}: {expression(extent, depth=_ALL)}' for name, extent in program.space)})"
    roots = [node for _, node in program.roots()]
    lines, names = listing(roots[sum(len(x.dims) for x in program.inputs) + len(program.space) :])
    yield from lines
    yield f"group  {expression(program.group, names, _ALL)}"
    for name, body in program.branches:
        yield f"branch {name} {{"
        yield from (f"    {line}" for line in _body_lines(body, names))
        yield "}"
    yield from _body_lines(program.body, names)


def declaration(declared: Input) -> str:
    """``name: kind[dims]``."""
    return f"{declared.name}: {declared.kind}[{', '.join(expression(dim, depth=_ALL) for dim in declared.dims)}]"


def parameter(given: Parameter) -> str:
    """``name: kind = default``."""
    return f"{given.name}: {given.kind}" + ("" if given.default is None else f" = {given.default!r}")


def _body_lines(body: Body, names: Mapping[Node, str]) -> Iterator[str]:
    for route in body.routes:
        yield from _route_lines(route, names)
    for clause in ("mask", "score", "weight", "value", "output"):
        yield f"{clause:<6} {expression(getattr(body, clause), names, _ALL)}"


def _route_lines(route: Route, names: Mapping[Node, str]) -> Iterator[str]:
    def show(node: Node) -> str:
        return expression(node, names, _ALL)

    queries = route.queries + (f"(block={show(route.queries_block)})" if route.queries_block else "")
    yield f"route keys(block={show(route.keys_block)}) per {queries}"
    if route.rank:
        yield f"    rank {show(route.rank)}"
    if route.candidates:
        yield f"    candidates {show(route.candidates)}"
    if route.select:
        options = (
            f'{name}="{value}"' if isinstance(value, str) else f"{name}={show(value)}"
            for name, value in route.select.options
        )
        yield f"    select {route.select.how}({', '.join((*map(show, route.select.args), *options))})"
    for word, taken in (("always", route.always), ("also", route.also)):
        if taken:
            yield f"    {word} " + ", ".join(name + (f"({show(node)})" if node else "") for name, node in taken)
