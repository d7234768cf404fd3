"""Reads what :mod:`attnc.ir.printer` writes. Not the language: names are resolved, kinds are explicit."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from attnc.ir import build
from attnc.ir.nodes import Input, Kind, Literal, Node
from attnc.ir.ops import OPS
from attnc.ir.printer import REDUCTIONS
from attnc.ir.program import Body, Listed, Parameter, Program, Route, Select

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)|(?P<name>[$%]?[A-Za-z_]\w*|[$%]\w+)"""
    r"""|(?P<string>"[^"]*")|(?P<mark>\*\*|//|<<|>>|[<>=!]=|[-+*/%&|^<>=()\[\]{},:]))"""
)
_INFIX = {op.symbol: op for op in OPS.values() if op.symbol and op.arity == 2}
_REDUCTIONS = {name: key for key, name in REDUCTIONS.items()}
_FORMS: dict[str, Callable[..., Node]] = {
    "dot": build.dot,
    "rope": build.rope,
    "matmul": build.matvec,
    "cumsum": build.cumsum,
    "solve": build.solve,
    "total": build.total,
    "window_j": functools.partial(build.window, "j"),
    "window_w": functools.partial(build.window, "w"),
    **{
        f"{op}_{over}": functools.partial(build.pool, op, over)
        for op, over in itertools.product(("mean", "max", "min", "sum"), "ijwgh")
    },
}


class Unreadable(ValueError):
    """The text is not a printed program."""


@dataclass(slots=True)
class Names:
    """What the names of a text stand for; ``lines`` are the shared expressions, ``widths`` what D and E are."""

    inputs: dict[str, Input] = field(default_factory=dict)
    params: dict[str, Kind] = field(default_factory=dict)
    lines: dict[str, Node] = field(default_factory=dict)
    widths: tuple[int, int] | None = None

    def resolve(self, name: str) -> Node:
        if name in self.lines:
            return self.lines[name]
        if name in build.INDEX_AXES:
            return build.index(name)
        if name in {"q", "k", "v"}:
            return build.token(name, self.width(name))
        if name in {"true", "false"}:
            return build.literal(name == "true")
        if name in self.params:
            return build.param(name, self.params[name])
        if name.startswith("%"):
            raise Unreadable(f"`{name}` is used before its line")
        return build.size(name)

    def read(self, text: str) -> Node:
        """The node that :func:`~attnc.ir.printer.expression` printed.

        Raises:
            Unreadable: it printed no such thing.
            IllTyped: its parts do not fit together.
        """
        return _whole(text, self)

    def define(self, line: str) -> None:
        """Take up a line of :func:`~attnc.ir.printer.listing`."""
        name, _, text = line.partition(" = ")
        self.lines[name] = self.read(text)

    def declare_input(self, text: str) -> Input:
        """Take up what :func:`~attnc.ir.printer.declaration` printed."""
        return _input(text, self)

    def declare_parameter(self, text: str) -> Parameter:
        """Take up what :func:`~attnc.ir.printer.parameter` printed."""
        return _parameter(text, self)

    def width(self, token: str) -> Node:
        if self.widths is None:
            return build.size("E" if token == "v" else "D")
        return build.literal(self.widths[token == "v"])


class _Reader:
    """A precedence climber over the tokens of one line."""

    def __init__(self, text: str, names: Names) -> None:
        self.text, self.names, self.at = text, names, 0
        self.tokens: list[tuple[str, str]] = []
        end = 0
        while text[end:].strip():
            found = _TOKEN.match(text, end)
            if not found or not found.lastgroup:
                raise Unreadable(f"cannot read `{text[end:].strip()}`")
            self.tokens.append((found.lastgroup, found[found.lastgroup]))
            end = found.end()

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, wanted: str | None = None) -> str:
        text = self.peek()
        if not text or (wanted is not None and text != wanted):
            raise Unreadable(f"expected {wanted or 'more'}, found `{text}` in `{self.text.strip()}`")
        self.at += 1
        return text

    def given(self, text: str) -> bool:
        """Whether ``text`` comes next; takes it if so."""
        if self.peek() != text:
            return False
        self.at += 1
        return True

    def several(self, end: str, one: Callable[[], object]) -> Iterator[object]:
        while not self.given(end):
            yield one()
            if self.peek() != end:
                self.take(",")

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise Unreadable(f"unexpected `{self.peek()}` in `{self.text.strip()}`")

    def expression(self, least: int = 0) -> Node:
        left = self.prefix()
        while (op := _INFIX.get(self.peek())) and op.binding >= least:
            self.take()
            left = build.apply(op.name, left, self.expression(op.binding + 1))
        if least == 0 and self.given("if"):
            condition = self.expression(1)
            self.take("else")
            return build.apply("where", condition, left, self.expression())
        return left

    def prefix(self) -> Node:
        kind, text = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        match kind, text:
            case "mark", "-":
                self.take()
                if self.tokens[self.at : self.at + 1] and self.tokens[self.at][0] == "number":
                    return self.number(self.take(), -1)
                return build.apply("neg", self.expression(OPS["neg"].binding))
            case "name", "not":
                self.take()
                return build.apply("not", self.expression(OPS["not"].binding))
            case "mark", "(":
                self.take()
                inner = self.expression()
                self.take(")")
                return self.suffix(inner)
            case "number", _:
                return self.number(self.take(), 1)
            case "name", _:
                return self.suffix(self.named(self.take()))
        raise Unreadable(f"expected an expression, found `{text}` in `{self.text.strip()}`")

    @staticmethod
    def number(text: str, sign: int) -> Literal:
        return build.literal(sign * (int(text) if text.isdigit() else float(text)))

    def named(self, name: str) -> Node:
        if name == "$k":
            return build.token(name, self.names.width("k"))
        if name.startswith("$"):
            return build.state(name[1:], self.state_width())
        if self.given("("):
            if name == "merge":
                branches = tuple(str(branch) for branch in self.several(")", self.take))
                return build.branch_output(branches, self.names.width("v"))
            return self.call(name, *self.several(")", self.expression))
        if name in self.names.inputs:
            self.take("[")
            indices = tuple(self.several("]", lambda: None if self.given(":") else self.expression()))
            return build.read(self.names.inputs[name], indices)  # type: ignore[arg-type]
        return self.names.resolve(name)

    @staticmethod
    def call(name: str, *args: object) -> Node:
        match name:
            case _ if name in _FORMS:
                return _FORMS[name](*args)
            case _ if name in _REDUCTIONS:
                op, over = _REDUCTIONS[name]
                make = {"j": build.reduce_keys, "d": build.reduce_width}.get(over, build.reduce_candidates)
                return make(op, *args)  # type: ignore[arg-type]
            case "bound":
                level, extent = args
                return build.bound(int(level.value), extent)  # type: ignore[attr-defined, arg-type]
            case _ if name in OPS and OPS[name].symbol is None:
                return build.apply(name, *args)  # type: ignore[arg-type]
        raise Unreadable(f"`{name}` is not a function")

    def state_width(self) -> Node | None:
        if self.tokens[self.at : self.at + 2] != [("mark", "["), ("mark", ":")]:
            return None
        self.at += 2
        width = self.expression()
        self.take("]")
        return width

    def suffix(self, node: Node) -> Node:
        while self.given("["):
            lo = self.expression()
            self.take(":")
            node = build.slice_(node, lo, self.expression())
            self.take("]")
        return node

    def block(self) -> Node:
        for text in ("(", "block", "="):
            self.take(text)
        block = self.expression()
        self.take(")")
        return block

    def optional(self) -> Node | None:
        if not self.given("("):
            return None
        node = self.expression()
        self.take(")")
        return node

    def argument(self) -> Node | tuple[str, Node | str]:
        """An argument of ``select``: an expression, or an option by name."""
        if self.tokens[self.at + 1 : self.at + 2] != [("mark", "=")]:
            return self.expression()
        name = self.take()
        self.take("=")
        is_string = self.peek().startswith('"')
        return name, self.take().strip('"') if is_string else self.expression()


def read_expression(text: str, inputs: Iterable[Input] = (), parameters: Iterable[Parameter] = ()) -> Node:
    """The node that :func:`~attnc.ir.printer.expression` printed.

    Raises:
        Unreadable: it printed no such thing.
        IllTyped: its parts do not fit together.
    """
    return _whole(text, Names({x.name: x for x in inputs}, {x.name: x.kind for x in parameters}))


def _whole(text: str, names: Names) -> Node:
    reader = _Reader(text, names)
    node = reader.expression()
    reader.end()
    return node


def read_program(text: str) -> Program:
    """The program that :func:`~attnc.ir.printer.print_program` printed, without its spans.

    Raises:
        Unreadable: it printed no such thing.
        IllTyped: the parts of an expression do not fit together.
    """
    names = Names()
    title = ""
    inputs: list[Input] = []
    parameters: list[Parameter] = []
    space: tuple[tuple[str, Node], ...] = ()
    listed: Listed | None = None
    group: Node | None = None
    branches: list[tuple[str, Body]] = []
    bodies: list[dict[str, Node]] = [{}]
    routes: list[list[Route]] = [[]]
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        match word:
            case "":
                continue
            case "program":
                title = rest
            case "widths":
                d, e = (int(part.partition("=")[2]) for part in rest.split())
                names.widths = (d, e)
            case "input":
                inputs.append(_input(rest, names))
            case "param":
                parameters.append(_parameter(rest, names))
            case "listed":
                listed = _listed(rest, names)
            case "space":
                space = _space(rest, names)
            case "group":
                group = _whole(rest, names)
            case "branch":
                branches.append((rest.partition(" ")[0], _NO_BODY))
                bodies.append({})
                routes.append([])
            case "}":
                branches[-1] = (branches[-1][0], _body(bodies.pop(), routes.pop()))
            case "mask" | "score" | "weight" | "value" | "output":
                bodies[-1][word] = _whole(rest, names)
            case "route":
                routes[-1].append(_route(rest, names))
            case "rank" | "candidates" | "select" | "always" | "also":
                routes[-1][-1] = _continue_route(routes[-1][-1], word, rest, names)
            case _ if word.startswith("%"):
                names.lines[word] = _whole(rest.removeprefix("= "), names)
            case _:
                raise Unreadable(f"cannot read the line `{line.strip()}`")
    if group is None:
        raise Unreadable("there is no `group` line")
    body = _body(bodies[0], routes[0])
    return Program(title, tuple(inputs), tuple(parameters), space, group, body, tuple(branches), names.widths, listed)


_NO_BODY = Body(*(build.literal(0),) * 5)


def _body(clauses: Mapping[str, Node], routes: list[Route]) -> Body:
    try:
        return Body(**clauses, routes=tuple(routes))
    except TypeError:
        raise Unreadable(f"a body needs mask, score, weight, value and output, found {', '.join(clauses)}") from None


def _declared_kind(reader: _Reader) -> tuple[str, Kind]:
    name = reader.take()
    reader.take(":")
    return name, Kind(reader.take())


def _input(text: str, names: Names) -> Input:
    reader = _Reader(text, names)
    name, kind = _declared_kind(reader)
    reader.take("[")
    dims = tuple(reader.several("]", reader.expression))
    names.inputs[name] = Input(name, kind, dims)  # type: ignore[arg-type]
    return names.inputs[name]


def _parameter(text: str, names: Names) -> Parameter:
    reader = _Reader(text, names)
    name, kind = _declared_kind(reader)
    default = reader.prefix() if reader.given("=") else None
    names.params[name] = kind
    return Parameter(name, kind, default.value if isinstance(default, Literal) else None)


def _listed(text: str, names: Names) -> Listed:
    try:
        numbers, counts = (names.inputs[name] for name in text.split())
    except (KeyError, ValueError):
        raise Unreadable(f"`{text}` does not name two inputs") from None
    return Listed(numbers, counts)


def _space(text: str, names: Names) -> tuple[tuple[str, Node], ...]:
    reader = _Reader(text, names)
    reader.take("(")

    def coordinate() -> tuple[str, Node]:
        name = reader.take()
        reader.take(":")
        return name, reader.expression()

    return tuple(reader.several(")", coordinate))  # type: ignore[arg-type]


def _route(text: str, names: Names) -> Route:
    reader = _Reader(text, names)
    reader.take("keys")
    keys_block = reader.block()
    reader.take("per")
    queries = reader.take()
    queries_block = reader.block() if reader.peek() == "(" else None
    return Route(keys_block, queries, queries_block, None, None, ())


def _continue_route(route: Route, word: str, text: str, names: Names) -> Route:
    reader = _Reader(text, names)
    match word:
        case "rank":
            return replace(route, rank=reader.expression())
        case "candidates":
            return replace(route, candidates=reader.expression())
        case "select":
            how = reader.take()
            reader.take("(")
            given = tuple(reader.several(")", reader.argument))
            args = tuple(one for one in given if isinstance(one, Node))
            options = tuple(one for one in given if isinstance(one, tuple))
            return replace(route, select=Select(how, args, options))
        case _:
            taken = tuple(reader.several("", lambda: (reader.take(), reader.optional())))
            return replace(route, **{word: taken})  # type: ignore[arg-type]
