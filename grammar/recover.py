"""After a syntax error: where to go on, so that the errors behind it are found as well."""

from __future__ import annotations

import re

from lark import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

STATEMENTS = (
    "import def attention input const param space let query key value mask score normalize output scale groups "
    "route branch keep rank select always"
).split()

_NEXT_STATEMENT = re.compile(rf"^[ \t]*(?P<word>{'|'.join(STATEMENTS)}|\}})(?!\w)", re.MULTILINE)


def skip_to_next_statement(error: UnexpectedInput, text: str) -> bool:
    """Move the parser to the next line that starts a statement, dropping the broken one; false if there is none."""
    if not isinstance(error, UnexpectedCharacters | UnexpectedToken) or error.interactive_parser is None:
        return False
    parser = error.interactive_parser
    start = error.pos_in_stream or 0
    found = _NEXT_STATEMENT.search(text, start + 1)
    while found is not None:
        skipped = text[start : found.start("word")]
        if found["word"] == "}" and skipped.count("{") > skipped.count("}"):
            found = _NEXT_STATEMENT.search(text, found.end())
            continue
        terminal = "RBRACE" if found["word"] == "}" else found["word"].upper()
        if _unwind(parser.parser_state, terminal):
            lexer = parser.lexer_thread.state
            assert lexer is not None
            lexer.line_ctr.char_pos = found.start("word")
            lexer.last_token = None
            return True
        found = _NEXT_STATEMENT.search(text, found.end())
    return False


def _unwind(state: object, terminal: str) -> bool:
    """Pop the parser's stack down to a state that takes ``terminal``."""
    states, values = state.state_stack, state.value_stack  # type: ignore[attr-defined]
    table = state.parse_conf.parse_table.states  # type: ignore[attr-defined]
    depth = len(states)
    while depth and terminal not in table[states[depth - 1]]:
        depth -= 1
    if not depth:
        return False
    del states[depth:], values[depth - 1 :]
    return True
