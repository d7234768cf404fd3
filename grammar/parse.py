"""Text to syntax tree. All syntax errors of a text are found: after each, parsing goes on at the next statement."""

from __future__ import annotations

import functools
from importlib import resources

from lark import Lark, Token, Tree, UnexpectedInput

from attnc.grammar import tree as t
from attnc.grammar.build_tree import TreeBuilder
from attnc.grammar.diagnostic import Diagnostic, SpecError
from attnc.grammar.recover import skip_to_next_statement
from attnc.grammar.source import Source, Span
from attnc.grammar.syntax_errors import describe

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 200
MAX_SYNTAX_ERRORS = 20


@functools.cache
def parser() -> Lark:
    """The LALR parser of ``attn.lark``."""
    grammar = resources.files("attnc.grammar").joinpath("attn.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", propagate_positions=True, maybe_placeholders=True)


def parse(source: Source) -> t.File:
    """The tree of a text.

    Raises:
        SpecError: the text is not well formed, too long, or nested too deeply.
    """
    if len(source.text) > MAX_CHARACTERS:
        end = Span(source, MAX_CHARACTERS, MAX_CHARACTERS)
        message = f"this spec is too large: {len(source.text)} characters, the limit is {MAX_CHARACTERS}"
        raise SpecError([Diagnostic("E901", message, end)])
    parsed = _parse(source)
    _check_depth(parsed, source)
    return TreeBuilder(source).file(parsed)


def _parse(source: Source) -> Tree[Token]:
    errors: list[Diagnostic] = []

    def on_error(error: UnexpectedInput) -> bool:
        errors.append(describe(parser(), error, source))
        return len(errors) < MAX_SYNTAX_ERRORS and skip_to_next_statement(error, source.text)

    try:
        parsed: Tree[Token] = parser().parse(source.text, on_error=on_error)
    except UnexpectedInput:
        parsed = Tree("start", [])
    if errors:
        raise SpecError(errors)
    return parsed


def _check_depth(parsed: Tree[Token], source: Source) -> None:
    """Refuse trees that recursive passes could not walk; itself without recursion."""
    depth: dict[int, int] = {}
    for node in parsed.iter_subtrees():
        depth[id(node)] = 1 + max((depth[id(child)] for child in node.children if isinstance(child, Tree)), default=0)
        if depth[id(node)] > MAX_DEPTH:
            span = Span(source, node.meta.start_pos, node.meta.end_pos)
            message = f"this expression is nested too deeply: the limit is {MAX_DEPTH} levels"
            raise SpecError([Diagnostic("E902", message, span, hint="name parts of it with `let`")])
