"""From Lark's parse tree to the syntax tree of :mod:`attnc.grammar.tree`."""

from __future__ import annotations

from typing import TypeAlias

from lark import Token, Tree

from attnc.grammar import tree as t
from attnc.grammar.source import Source, Span

Parsed: TypeAlias = Tree[Token]
Child: TypeAlias = Parsed | Token | None


class TreeBuilder:
    """Builds the syntax tree of one source."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def file(self, parsed: Parsed) -> t.File:
        nodes = [self._top(child) for child in _trees(parsed)]
        return t.File(
            tuple(node for node in nodes if isinstance(node, t.Import)),
            tuple(node for node in nodes if isinstance(node, t.Def)),
            tuple(node for node in nodes if isinstance(node, t.Attention)),
            Span(self.source, 0, 0),
        )

    def _top(self, parsed: Parsed) -> t.Import | t.Def | t.Attention:
        span = self._span(parsed)
        match parsed.data:
            case "import":
                return t.Import(str(parsed.children[1])[1:-1], self._token_span(_token(parsed, 1)))
            case "def":
                return self._def(parsed)
            case _:
                items = tuple(self._item(child) for child in _trees(parsed))
                return t.Attention(self._name(_token(parsed, 1)), items, span)

    def _def(self, parsed: Parsed) -> t.Def:
        _, name, parameters, body = parsed.children
        listed = _trees(parameters) if isinstance(parameters, Tree) else []
        return t.Def(
            self._name(name),
            tuple(t.Parameter(self._name(p.children[0]), self._optional(p.children[1])) for p in listed),
            self.expr(body),
            self._span(parsed),
        )

    def _item(self, parsed: Parsed) -> t.Item:
        span, children = self._span(parsed), parsed.children
        match parsed.data:
            case "input":
                dims = tuple(map(self.expr, _trees(children[3]))) if isinstance(children[3], Tree) else ()
                return t.InputDecl(self._name(children[1]), _kind(children[2]) or "real", dims, span)
            case "const":
                return t.ConstDecl(self._name(children[1]), _kind(children[2]), self._optional(children[3]), span)
            case "param":
                return t.ParamDecl(self._name(children[1]), _kind(children[2]), self._optional(children[3]), span)
            case "space":
                axes = [(self._name(axis.children[0]), self.expr(axis.children[1])) for axis in _trees(parsed)]
                return t.SpaceDecl(tuple(axes), span)
            case "let":
                return t.Let(self._name(children[1]), self.expr(children[2]), span)
            case "def":
                return self._def(parsed)
            case "clause":
                return t.Clause(str(children[0]), self.expr(children[1]), self._token_span(_token(parsed, 0)), span)
            case "route":
                return self._route(parsed, span)
            case "keep":
                return t.Keep(self._call(children[2]), self.expr(children[4]), span)
            case _:
                items = tuple(self._item(child) for child in _trees(parsed))
                return t.Branch(self._name(_token(parsed, 1)), items, span)

    def _route(self, parsed: Parsed, span: Span) -> t.RouteDecl:
        head, *items = _trees(parsed)
        _, _, keys, _, per, *queries = head.children
        return t.RouteDecl(
            self._arguments(keys),
            str(per),
            self._arguments(queries[0]) if queries else (),
            tuple(map(self._route_item, items)),
            self._span(head),
            span,
        )

    def _route_item(self, parsed: Parsed) -> t.RouteItem:
        span, children = self._span(parsed), parsed.children
        match parsed.data:
            case "rank":
                over = str(children[3]) if len(children) > 3 and children[3] is not None else None
                return t.Rank(self.expr(children[1]), over, span)
            case "select":
                return t.SelectDecl(self._call(children[1]), span)
            case "candidates":
                return t.Candidates(self.expr(children[1]), span)
            case word:
                return t.Always(str(word), tuple(map(self.expr, _trees(parsed))), span)

    def expr(self, parsed: Child) -> t.Expr:
        """One expression."""
        assert isinstance(parsed, Tree)
        span, children = self._span(parsed), parsed.children
        match parsed.data:
            case "name":
                return self._name(children[0])
            case "number":
                return t.Number(_number(str(children[0])), span)
            case "truth":
                return t.Truth(str(children[0]) == "true", span)
            case "coordinate":
                return t.Coordinate(self._name(_trees(parsed)[0].children[0]), self._name(children[1]), span)
            case "call":
                return self._call(parsed)
            case "unary":
                return t.Unary(str(children[0]), self.expr(children[1]), span)
            case "binary":
                return t.Binary(str(children[1]), self.expr(children[0]), self.expr(children[2]), span)
            case "compare":
                links = zip(children[1::2], children[2::2], strict=True)
                return t.Compare(self.expr(children[0]), tuple((str(op), self.expr(x)) for op, x in links), span)
            case "conditional":
                then, _, condition, _, otherwise = children
                return t.Conditional(self.expr(then), self.expr(condition), self.expr(otherwise), span)
            case _:
                base, *items = _trees(parsed)
                return t.Subscript(self.expr(base), tuple(map(self._place, items)), span)

    def _place(self, parsed: Parsed) -> t.Expr | t.Range:
        if parsed.data != "range":
            return self.expr(parsed)
        lo, _, hi = parsed.children
        return t.Range(self._optional(lo), self._optional(hi), self._span(parsed))

    def _call(self, parsed: Child) -> t.Call:
        assert isinstance(parsed, Tree)
        return t.Call(self._name(parsed.children[0]), self._arguments(parsed.children[1]), self._span(parsed))

    def _arguments(self, parsed: Child) -> tuple[t.Argument, ...]:
        assert isinstance(parsed, Tree)
        return tuple(
            t.Argument(
                None if argument.children[0] is None else self._name(argument.children[0]),
                self.expr(argument.children[1]),
                self._span(argument),
            )
            for argument in _trees(parsed)
        )

    def _optional(self, parsed: Child) -> t.Expr | None:
        return None if parsed is None else self.expr(parsed)

    def _name(self, token: Child) -> t.Name:
        assert isinstance(token, Token)
        return t.Name(str(token), self._token_span(token))

    def _token_span(self, token: Token) -> Span:
        assert token.start_pos is not None
        assert token.end_pos is not None
        return Span(self.source, token.start_pos, token.end_pos)

    def _span(self, parsed: Parsed) -> Span:
        return Span(self.source, parsed.meta.start_pos, parsed.meta.end_pos)


def _trees(parsed: Parsed) -> list[Parsed]:
    return [child for child in parsed.children if isinstance(child, Tree)]


def _token(parsed: Parsed, at: int) -> Token:
    token = parsed.children[at]
    assert isinstance(token, Token)
    return token


def _kind(parsed: Child) -> str | None:
    return str(parsed.children[0]) if isinstance(parsed, Tree) else None


def _number(text: str) -> int | float:
    """The value of a literal; an integer with more digits than any kernel holds becomes an infinite real."""
    if text.startswith("0x"):
        return int(text, 16)
    if text.isdigit():
        return int(text) if len(text) < 40 else float("inf")
    return float(text)
