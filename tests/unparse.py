"""Syntax trees as text, every operation in parentheses, and random trees to write."""

from hypothesis import strategies as st

from attnc.grammar import Source, Span
from attnc.grammar import tree as t

NOWHERE = Span(Source("<made>", ""), 0, 0)
NAMES = ["i", "j", "score", "mask", "value", "keys", "rank", "x", "weight_2", "iff", "nothing"]
OPERATORS = "or and | ^ & << >> + - * / // % **".split()
COMPARISONS = "< <= > >= == !=".split()


def write(expr: t.Expr | t.Range) -> str:
    match expr:
        case t.Name(text=text):
            return text
        case t.Number(value=value):
            return repr(value)
        case t.Truth(value=value):
            return str(value).lower()
        case t.Coordinate(base=base, axis=axis):
            return f"{base.text}.{axis.text}"
        case t.Unary(op=op, x=x):
            return f"({op} {write(x)})"
        case t.Binary(op=op, a=a, b=b):
            return f"({write(a)} {op} {write(b)})"
        case t.Compare(first=first, rest=rest):
            return "(" + " ".join([write(first), *(f"{op} {write(x)}" for op, x in rest)]) + ")"
        case t.Conditional(then=then, condition=condition, otherwise=otherwise):
            return f"({write(then)} if {write(condition)} else {write(otherwise)})"
        case t.Call(function=function, arguments=arguments):
            given = [(f"{a.name.text}=" if a.name else "") + write(a.value) for a in arguments]
            return f"{function.text}({', '.join(given)})"
        case t.Subscript(base=base, items=items):
            return f"{write(base)}[{', '.join(map(write, items))}]"
        case t.Range(lo=lo, hi=hi):
            return f"{write(lo) if lo else ''}:{write(hi) if hi else ''}"


names = st.sampled_from(NAMES).map(lambda text: t.Name(text, NOWHERE))
numbers = st.one_of(st.integers(0, 2**31), st.floats(0, 1e30, allow_nan=False))


def _grow(inner: st.SearchStrategy[t.Expr]) -> st.SearchStrategy[t.Expr]:
    maybe = st.none() | inner
    argument = st.builds(t.Argument, st.none() | names, inner, st.just(NOWHERE))
    item = inner | st.builds(t.Range, maybe, maybe, st.just(NOWHERE))
    links = st.lists(st.tuples(st.sampled_from(COMPARISONS), inner), min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.builds(t.Unary, st.sampled_from(["-", "not"]), inner, st.just(NOWHERE)),
        st.builds(t.Binary, st.sampled_from(OPERATORS), inner, inner, st.just(NOWHERE)),
        st.builds(t.Compare, inner, links, st.just(NOWHERE)),
        st.builds(t.Conditional, inner, inner, inner, st.just(NOWHERE)),
        st.builds(t.Call, names, st.lists(argument, max_size=3).map(tuple), st.just(NOWHERE)),
        st.builds(t.Subscript, inner, st.lists(item, min_size=1, max_size=3).map(tuple), st.just(NOWHERE)),
    )


_leaves = st.one_of(
    names,
    st.builds(t.Number, numbers, st.just(NOWHERE)),
    st.builds(t.Truth, st.booleans(), st.just(NOWHERE)),
    st.builds(t.Coordinate, names, names, st.just(NOWHERE)),
)
expressions: st.SearchStrategy[t.Expr] = st.recursive(_leaves, _grow, max_leaves=12)
