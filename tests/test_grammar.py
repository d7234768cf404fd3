"""The grammar: what parses to what, and that nothing but `SpecError` ever comes out."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unparse import expressions, write

from attnc.grammar import Source, Span, SpecError, std_source
from attnc.grammar import tree as t
from attnc.grammar.parse import MAX_CHARACTERS, parse
from attnc.grammar.syntax_errors import NAMED

SPECS = sorted((Path(__file__).parent.parent / "specs").rglob("*.attn"))


def parsed(text: str) -> t.File:
    return parse(Source("x.attn", text))


def expression(text: str) -> t.Expr:
    (item,) = parsed(f"attention a {{ let x = {text} }}").attentions[0].items
    assert isinstance(item, t.Let)
    return item.value


def error_of(text: str) -> SpecError | None:
    """The error of a text, which can be shown; anything else that is raised fails the test."""
    try:
        parsed(text)
    except SpecError as error:
        str(error)
        return error
    return None


def messages(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parsed(text)
    return [found.message for found in caught.value.diagnostics]


@pytest.mark.parametrize(
    ("loose", "strict"),
    [
        ("a + b * c", "(a + (b * c))"),
        ("a - b - c", "((a - b) - c)"),
        ("-a ** b", "(- (a ** b))"),
        ("a ** -b ** c", "(a ** (- (b ** c)))"),
        ("not a == b", "(not (a == b))"),
        ("not a and b or c", "(((not a) and b) or c)"),
        ("a & b == c", "((a & b) == c)"),
        ("a | b ^ c & d << e + f", "(a | (b ^ (c & (d << (e + f)))))"),
        ("a if b else c if d else e", "(a if b else (c if d else e))"),
        ("a < b <= c", "(a < b <= c)"),
        ("a or b if c and d else e", "((a or b) if (c and d) else e)"),
        ("a // b % c * d", "(((a // b) % c) * d)"),
        ("-a.x[b]", "(- a.x[b])"),
        ("f(a, b=c)[d:, :e, :]", "f(a, b=c)[d:, :e, :]"),
    ],
)
def test_precedence_is_that_of_python(loose: str, strict: str) -> None:
    assert write(expression(loose)) == strict


@settings(max_examples=150, deadline=None)
@given(expressions)
def test_a_written_tree_is_read_back(tree: t.Expr) -> None:
    assert expression(write(tree)) == tree


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_spacing_and_comments_mean_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = [line.split("#")[0] for line in text.splitlines()]
    assert parsed(" ".join(lines)) == parsed(text)
    assert parsed("\r\n\t".join(f"{line} # {n}" for n, line in enumerate(lines))) == parsed(text)


def test_keywords_of_clauses_are_names_in_expressions() -> None:
    text = "attention mask { score rank + keys mask score output value scale scale normalize score input query: real }"
    items = parsed(text).attentions[0].items
    assert [
        item.keyword for item in items[:-1] if isinstance(item, t.Clause)
    ] == "score mask output scale normalize".split()
    assert isinstance(items[-1], t.InputDecl)
    assert items[-1].name.text == "query"


def test_a_span_is_the_text_of_its_node() -> None:
    text = "attention a {\n    # first\n    mask causal and (i - j) < W\n    score dot(q, k) * scale\n}\n"
    mask, score = parsed(text).attentions[0].items
    assert isinstance(mask, t.Clause)
    assert isinstance(score, t.Clause)
    assert mask.value.span.text == "causal and (i - j) < W"
    assert score.value.span.text == "dot(q, k) * scale"
    assert (score.at.line, score.at.column) == (4, 5)
    assert isinstance(mask.value, t.Binary)
    assert mask.value.b.span.text == "(i - j) < W"


@pytest.mark.parametrize(
    ("text", "value"), [("0x1F", 31), ("1e3", 1000.0), (".5", 0.5), ("2.", 2.0), ("007", 7), ("1.5E-2", 0.015)]
)
def test_numbers(text: str, value: float) -> None:
    number = expression(text)
    assert isinstance(number, t.Number)
    assert number.value == value
    assert type(number.value) is type(value)


@pytest.mark.parametrize("named", NAMED, ids=lambda named: named.message)
def test_each_malformed_example_has_the_name_it_stands_for(named: object) -> None:
    assert isinstance(named, type(NAMED[0]))
    for example in named.examples:
        assert named.message in messages(example), example


def test_all_syntax_errors_come_at_once() -> None:
    broken = "\n".join(f"    let x{n} {n}" for n in range(7))
    assert len(messages(f"attention a {{\n{broken}\n    mask i = j\n}}\n\nattention {{\n}}\n")) == 9
    assert len(messages(f"attention a {{\n{broken * 9}\n}}")) == 20


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000 + "1" + ")" * 10_000,
        "-" * 2_000 + "1",
        "not " * 2_000 + "true",
        "+".join(["1"] * 2_000),
        "**".join(["1"] * 2_000),
        "1 if true else " * 2_000 + "1",
        "f(" * 2_000 + "1" + ")" * 2_000,
        "a[" * 2_000 + "1" + "]" * 2_000,
    ],
    ids=lambda text: text[:4],
)
def test_deep_nesting_is_an_error_of_the_spec(text: str) -> None:
    error = error_of(f"attention a {{ let x = {text} }}")
    assert [found.code for found in error.diagnostics] == ["E902"] if error else text.startswith("(")


def test_a_text_too_large_is_an_error_of_the_spec() -> None:
    assert "too large" in messages("#" * (MAX_CHARACTERS + 1))[0]


def test_lines_and_columns_count_newlines_alone() -> None:
    source = Source("x", "a\x0cb\r\nc\u2028d\n")
    at = source.text.index("d")
    assert (Span(source, at, at + 1).line, Span(source, at, at + 1).column) == (2, 3)
    assert source.line(1) == "a\x0cb"
    assert source.line(2) == "c\u2028d"
    assert source.line(9) == ""


@settings(max_examples=150, deadline=None)
@given(st.text() | st.text(alphabet='attention a{}mask score(ij,)+-*=<>.:[]#"\n 0123e', max_size=80))
def test_any_text_parses_or_is_a_spec_error(text: str) -> None:
    error_of(text)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*SPECS, None]), st.randoms(use_true_random=False))
def test_a_mutated_spec_parses_or_is_a_spec_error(path: Path | None, chance: random.Random) -> None:
    text = path.read_text(encoding="utf-8") if path else std_source().text[:3000]
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        inserted = chance.choice(["", "(", ")", "{", "}", "=", ",", " mask ", "[", ":", "let", '"', "1", "@", "if "])
        text = text[:at] + inserted + text[at + chance.randint(0, 3) :]
    error_of(text)
