"""Names for syntax errors: a malformed example stands for every text that fails in the same parser state.

To name another error, add an example: the parser is run on it, and where it stops is the key.
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass

from lark import Lark, Token, UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from attnc.grammar.diagnostic import Diagnostic
from attnc.grammar.recover import STATEMENTS
from attnc.grammar.source import Source, Span


@dataclass(frozen=True, slots=True)
class Named:
    """A kind of syntax error and texts that have it."""

    code: str
    message: str
    hint: str
    examples: tuple[str, ...]


NAMED = (
    Named(
        "E003",
        "`=` does not compare",
        "write `==` to compare",
        ("attention a { mask i = j }", "attention a { let x = i = j }", "attention a { mask f(i) = 1 }"),
    ),
    Named(
        "E003",
        "a clause has no `=` or `:`",
        "write the expression right after the keyword: `score dot(q, k) * scale`",
        ("attention a { score = 1 }", "attention a { mask: causal }", "attention a { normalize = 1 }"),
    ),
    Named(
        "E004",
        "an attention needs a name",
        "write `attention NAME { ... }`",
        ("attention { }", 'attention "a" { }', "attention 1 {"),
    ),
    Named(
        "E004",
        "the body of an attention stands in braces",
        "write `attention NAME { ... }`",
        ("attention a mask", "attention a (", "attention a :", "attention a ="),
    ),
    Named(
        "E005",
        "an input needs a kind",
        "write `input NAME: real[H]`; kinds are real, int and bool",
        ("attention a { input x[H] }", "attention a { input x }", "attention a { input x = 1 }"),
    ),
    Named(
        "E005",
        "this is not a kind",
        "kinds are `real`, `int` and `bool`",
        ("attention a { input x: float }", "attention a { const x: 3 }", "attention a { param x: [ }"),
    ),
    Named(
        "E005",
        "a definition needs `=` before its value",
        "write `let NAME = EXPR`",
        ("attention a { let x 1 }", "attention a { let x: 1 }", "attention a { let x f(1) }", "def f(x) x"),
    ),
    Named(
        "E005",
        "a constant or param needs `=` before its value",
        "write `const NAME = VALUE` or `param NAME: KIND = VALUE`",
        ("attention a { const W 4 }", "attention a { param W 4 }", "attention a { const W: int 4 }"),
    ),
    Named(
        "E006",
        "a space lists its coordinates with their extents",
        "write `space (t: T, y: Y, x: X)`",
        (
            "attention a { space t: T }",
            "attention a { space (t) }",
            "attention a { space (t, y) }",
            "attention a { space (t = T) }",
            "attention a { space [t: T] }",
        ),
    ),
    Named(
        "E007",
        "an import names a file",
        'write `import "file.attn"`; the prelude `std` is there without it',
        ("import std", "import f.attn", "import attention"),
    ),
    Named(
        "E008",
        "only `import`, `def` and `attention` stand outside an attention",
        "put it into the braces of an `attention NAME { ... }`",
        (
            "mask causal",
            "let x = 1",
            "input x: real",
            "const W = 1",
            "score 1",
            "normalize 1",
            "param x = 1",
            "space (x: X)",
            "output 1",
            "query q",
            "key k",
            "value v",
            "def f = 1 mask causal",
            "attention a {} mask",
        ),
    ),
    Named(
        "E009",
        "a route says which keys and for whom",
        "write `route keys(block=64) per query { rank ... select top(8) }`",
        (
            "attention a { route per query }",
            "attention a { route { } }",
            "attention a { route keys per query }",
            "attention a { route keys(block=1) { } }",
            "attention a { route keys(block=1) per { } }",
            "attention a { route keys(block=1) per key { } }",
        ),
    ),
    Named(
        "E010",
        "`if` needs its `else`",
        "write `a if condition else b`",
        ("attention a { mask a if b }", "attention a { mask (a if b) }", "attention a { let x = f(a if b, c) }"),
    ),
)

_EXPRESSION = frozenset({"NAME", "NUMBER", "LPAR", "MINUS", "TRUE", "FALSE"})
_OPERATORS = frozenset("PLUS TIMES AND OR COMPARISON BITAND BITOR BITXOR SHIFT POWER IF".split())
_SHOWN = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": 'a text in "..."',
    "$END": "the end of the file",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "COMMA": "`,`",
    "EQUAL": "`=`",
    "COLON": "`:`",
    "DOT": "`.`",
}
_CLOSING = {"RPAR": ("(", ")"), "RSQB": ("[", "]"), "RBRACE": ("{", "}")}
_FOREIGN = {
    "≤": "write `<=`",
    "≥": "write `>=`",
    "≠": "write `!=`",
    "×": "write `*`",
    "·": "write `*`, or `dot(a, b)` for vectors",
    "∧": "write `and`",
    "∨": "write `or`",
    "¬": "write `not`",
    "∞": "numbers are finite; a pair that must not take part is excluded by `mask`",
    "!": "write `not` for negation and `!=` for unequal",
    ";": "statements need nothing between them",
    "?": "write `a if condition else b`",
    "'": 'texts stand in double quotes: "file.attn"',
    "@": "write `dot(a, b)` or `matmul(a, w[h, :, :])`",
    '"': "a text ends on the line it starts on",
}


def describe(parser: Lark, error: UnexpectedInput, source: Source) -> Diagnostic:
    """The diagnostic of an error that ``parser`` met in ``source``."""
    if isinstance(error, UnexpectedToken):
        return _unexpected_token(parser, error, source)
    assert isinstance(error, UnexpectedCharacters)
    at = error.pos_in_stream or 0
    character = source.text[at]
    shown = f"`{character}`" if character.isprintable() else f"U+{ord(character):04X}"
    message = f"{shown} does not belong to the language"
    if character.isdigit():
        message = "a number and a name run into each other"
    return Diagnostic("E001", message, Span(source, at, at + 1), "unexpected character", _FOREIGN.get(character))


def _unexpected_token(parser: Lark, error: UnexpectedToken, source: Source) -> Diagnostic:
    token: Token = error.token
    start, end = _place(token, source)
    span = Span(source, start, end)
    parser_ = error.interactive_parser
    accepted: frozenset[str] = frozenset(parser_.accepts() if parser_ else error.accepts)  # type: ignore[no-untyped-call]
    named = _table(parser).get((_position(error), token.type))
    if named is not None:
        return Diagnostic(named.code, named.message, span, _expected(accepted), named.hint)
    message = "the file ends too early" if token.type == "$END" else f"unexpected `{token}`"
    before = error.token_history[-1] if error.token_history else None
    return Diagnostic("E002", message, span, _expected(accepted), _hint(token, before, accepted))


def _place(token: Token, source: Source) -> tuple[int, int]:
    """Where the token stands; for the end of the file, just behind the last thing written."""
    if token.type == "$END" or token.start_pos is None or token.end_pos is None:
        end = len(source.text.rstrip())
        return end, end
    return token.start_pos, token.end_pos


def _expected(accepted: frozenset[str]) -> str:
    """``expected ...`` in words."""
    words = []
    rest = set(accepted)
    if accepted >= _EXPRESSION:
        words.append("an expression")
        rest -= _EXPRESSION | {"NOT"}
    if accepted >= {"PLUS", "TIMES"}:
        words.append("an operator")
        rest -= _OPERATORS | {"MINUS", "LPAR", "LSQB", "DOT"}
    if accepted >= {"MASK", "SCORE"}:
        words.append("a clause or declaration")
        rest = {name for name in rest if name in _SHOWN}
    words += sorted(_SHOWN.get(name) or f"`{name.lower()}`" for name in rest)
    if len(words) > 6:
        words = [*words[:5], "..."]
    return "expected " + (f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words))


def _hint(token: Token, before: Token | None, accepted: frozenset[str]) -> str | None:
    if before is not None and before.type == "NAME" and before in STATEMENTS:
        return f"`{before}` was read as a name, for the expression before it is not finished"
    keywords = [name.lower() for name in accepted if name not in _SHOWN and name.isalpha()]
    if token.type == "NAME" and not accepted >= _EXPRESSION:
        close = difflib.get_close_matches(token, keywords, 1)
        if close:
            return f"did you mean `{close[0]}`?"
        if token in ("elif", "for", "while", "return", "lambda"):
            return "a spec is made of expressions; choose with `a if condition else b`"
    for closing, (opening, closed) in _CLOSING.items():
        if closing in accepted and (token.type == "$END" or token.type.lower() == token):
            return f"is the `{closed}` of a `{opening}` missing?"
    if "COMMA" in accepted and token.type in ("NAME", "NUMBER", "TRUE", "FALSE", "NOT"):
        return "is a `,` or an operator missing?"
    if token in ("&", "|") and accepted >= _EXPRESSION:
        return "write `and` and `or` between truth values"
    return None


def _position(error: UnexpectedToken) -> int:
    position: int = error.interactive_parser.parser_state.position if error.interactive_parser else -1
    return position


@functools.cache
def _table(parser: Lark) -> dict[tuple[int, str], Named]:
    """Where the parser stops on each example, and on which token."""
    table: dict[tuple[int, str], Named] = {}
    for named in NAMED:
        for example in named.examples:
            try:
                parser.parse(example)
            except UnexpectedToken as error:
                table.setdefault((_position(error), error.token.type), named)
    return table
