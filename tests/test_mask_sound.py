"""What the mask analysis claims is true of every pair: against brute force, on random masks, sizes and tiles."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import masks

from attnc.analyse.mask import analyse_mask
from attnc.analyse.mask.beyond import hides_beyond
from attnc.analyse.scalar import evaluate
from attnc.analyse.visibility import Range, Visibility
from attnc.ir.build import apply, index, literal, param, read, size
from attnc.ir.nodes import Input, Kind, Literal, Node, Read
from attnc.ir.traverse import postorder

I, J = index("i"), index("j")  # noqa: E741
SPAN = read(Input("span", Kind.INT, (size("H"),)), (index("h"),))
DENSE = read(Input("dense", Kind.BOOL, (size("H"),)), (index("h"),))
DATA = {
    "doc": torch.arange(24)[None] // 5,
    "keep": (torch.arange(24) % 3 > 0)[None],
    "seg": torch.arange(24)[None] // 4,
    "span": torch.tensor([3, -2]),
    "dense": torch.tensor([True, False]),
    "words": torch.tensor([0b101101, 0]),
}


def op(name: str, *args: Node | float) -> Node:
    return apply(name, *(arg if isinstance(arg, Node) else literal(arg) for arg in args))


def coordinates() -> st.SearchStrategy[Node]:
    """Ints as masks of grids, blocks and heads make them."""
    number = st.integers(-4, 9).map(literal)
    divisor = st.one_of(st.integers(1, 6).map(literal), st.sampled_from([size("X"), SPAN]))
    leaves = st.one_of(
        st.sampled_from([I, J, op("sub", I, J), op("add", I, J)]),
        st.sampled_from([size("N"), SPAN, index("row"), param("reach", Kind.INT)]),
        number,
    )

    def grow(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return st.one_of(
            st.builds(apply, st.sampled_from(["add", "sub", "min", "max"]), inner, inner),
            st.builds(apply, st.sampled_from(["floordiv", "mod"]), inner, divisor),
            st.builds(lambda x, lo, hi: op("min", op("max", x, lo), hi), inner, number, number),
            st.builds(apply, st.just("mul"), inner, st.one_of(number, divisor)),
            st.builds(apply, st.sampled_from(["abs", "neg", "sign"]), inner),
            st.builds(lambda x, y: op("where", op("lt", x, y), x, 3), inner, inner),
            st.builds(lambda x, c: op("bitand", x, c), inner, st.integers(0, 8).map(literal)),
            st.builds(lambda x, c: op("shr", x, c), inner, st.integers(0, 3).map(literal)),
        )

    return st.recursive(leaves, grow, max_leaves=5)


def grid_masks() -> st.SearchStrategy[Node]:
    """Comparisons of :func:`coordinates` under the connectives, some as reals."""
    x = coordinates()
    compare = st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"])
    real = st.sampled_from([param("bound", Kind.REAL), literal(2.5), literal(-1.0)])
    atoms = st.one_of(
        st.builds(apply, compare, x, x),
        st.builds(apply, compare, x, x),
        st.builds(
            lambda name, a, b: op(name, op("real", a), b), compare, x.filter(lambda n: not isinstance(n, Literal)), real
        ),
        st.builds(lambda a: op("eq", op("bitand", a, op("sub", a, 1)), 0), x),
        st.builds(lambda a, c: op("eq", op("mod", a, c), op("mod", 7, c)), x, st.integers(1, 5)),
        st.just(DENSE),
    )

    def grow(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return st.one_of(
            st.builds(apply, st.sampled_from(["and", "or", "and"]), inner, inner),
            st.builds(apply, st.just("not"), inner),
        )

    return st.recursive(atoms, grow, max_leaves=5)


def divided_masks() -> st.SearchStrategy[Node]:
    """Comparisons of positions divided or multiplied by an int of the head, which may be negative."""
    position = st.sampled_from([I, J, op("sub", I, J)])
    divided = st.builds(apply, st.sampled_from(["floordiv", "mod", "mul"]), position, st.just(SPAN))
    right = st.one_of(divided, position, st.integers(-4, 9).map(literal))
    return st.builds(apply, st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), divided, right)


def cuts(draw: st.DrawFn, first: int, count: int) -> torch.Tensor:
    """Tiles ``[lo, hi]`` that partition ``count`` positions from ``first``; shape [tiles, 2]."""
    step = draw(st.integers(1, 9))
    ragged = draw(st.integers(0, step - 1))
    edges = [first, *range(first + step - ragged, first + count, step), first + count]
    return torch.tensor([(lo, hi - 1) for lo, hi in pairwise(edges) if lo < hi])


@st.composite
def cases(draw: st.DrawFn, mask: st.SearchStrategy[Node]) -> tuple[Node, dict[str, object], torch.Tensor, torch.Tensor]:
    m, n = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    h = draw(st.integers(0, 1))
    env = {"M": m, "N": n, "B": 1, "H": 2, "G": 2, "b": 0, "h": h, "g": h, "X": draw(st.integers(1, 6))}
    parameters = {"reach": draw(st.integers(-3, 5)), "bound": draw(st.floats(-5, 9)), "temperature": 1.0}
    return draw(mask), env | parameters | DATA, cuts(draw, n - m, m), cuts(draw, 0, n)


def positions_in(
    ranges: tuple[Range, ...], env: dict[str, object], positions: torch.Tensor, which: str
) -> torch.Tensor:
    """Which positions lie in some range; shape [tiles, positions]."""
    inside = torch.zeros((1, len(positions)), dtype=torch.bool)
    for r in ranges:
        lo, hi = (r.lo, r.hi) if which == "may" else (r.full_lo, r.full_hi)
        lo, hi = (torch.as_tensor(evaluate(x, env)).reshape(-1, 1) for x in (lo, hi))
        inside = inside | ((positions >= lo) & (positions < hi))
    return inside


def check(v: Visibility, env: dict[str, object], rows: torch.Tensor, keys: torch.Tensor) -> None:
    """Every claim of ``v`` about the tiles ``rows`` x ``keys`` holds."""
    m, n = int(str(env["M"])), int(str(env["N"]))
    i, j = torch.arange(n - m, n)[:, None], torch.arange(n)[None]
    seen = torch.as_tensor(evaluate(v.mask, {**env, "i": i, "j": j})).expand(m, n)
    in_row = (i >= rows[:, 0]) & (i <= rows[:, 1])
    in_key = (keys[:, :1] <= j) & (j <= keys[:, 1:])
    any_row = torch.einsum("mr,mn->rn", in_row.long(), seen.long()) > 0
    all_row = torch.einsum("mr,mn->rn", in_row.long(), (~seen).long()) == 0
    any_key = torch.einsum("cn,mn->cm", in_key.long(), seen.long()) > 0
    all_key = torch.einsum("cn,mn->cm", in_key.long(), (~seen).long()) == 0
    by_row = {**env, "i_lo": rows[:, 0], "i_hi": rows[:, 1]}
    by_key = {**env, "j_lo": keys[:, 0], "j_hi": keys[:, 1]}
    tile = {**env, "i_lo": rows[:, :1], "i_hi": rows[:, 1:], "j_lo": keys[:, 0], "j_hi": keys[:, 1]}
    any_tile = torch.einsum("rn,cn->rc", any_row.long(), in_key.long()) > 0
    all_tile = torch.einsum("rn,cn->rc", (~all_row).long(), in_key.long()) == 0
    shape = any_tile.shape

    assert not (torch.as_tensor(evaluate(v.empty, tile)).expand(shape) & any_tile).any(), (
        "a visible pair in an empty tile"
    )
    assert not (torch.as_tensor(evaluate(v.full, tile)).expand(shape) & ~all_tile).any(), "a masked pair in a full tile"
    assert not (any_row & ~positions_in(v.key_ranges, by_row, j[0], "may")).any(), "a visible key outside the ranges"
    assert not (~all_row & positions_in(v.key_ranges, by_row, j[0], "full")).any(), "a masked key in a full range"
    assert not (any_key & ~positions_in(v.row_ranges, by_key, i[:, 0], "may")).any(), "a visible row outside the ranges"
    assert not (~all_key & positions_in(v.row_ranges, by_key, i[:, 0], "full")).any(), "a masked row in a full range"


@settings(max_examples=250, deadline=None)
@given(cases(masks()))
def test_random_masks(case: tuple[Node, dict[str, object], torch.Tensor, torch.Tensor]) -> None:
    mask, env, rows, keys = case
    check(analyse_mask(mask), env, rows, keys)


@settings(max_examples=400, deadline=None)
@given(cases(grid_masks()))
def test_random_masks_of_grids_and_heads(case: tuple[Node, dict[str, object], torch.Tensor, torch.Tensor]) -> None:
    mask, env, rows, keys = case
    check(analyse_mask(mask), env, rows, keys)


@settings(max_examples=200, deadline=None)
@given(cases(divided_masks()))
def test_divisors_from_data(case: tuple[Node, dict[str, object], torch.Tensor, torch.Tensor]) -> None:
    mask, env, rows, keys = case
    check(analyse_mask(mask), env, rows, keys)


def _reads_by_key(mask: Node) -> bool:
    return any(isinstance(node, Read) and "j" in node.axes for node in postorder(mask))


@settings(max_examples=400, deadline=None)
@given(cases(st.one_of(masks().filter(lambda mask: not _reads_by_key(mask)), grid_masks())))
def test_what_hides_keys_past_the_last(case: tuple[Node, dict[str, object], torch.Tensor, torch.Tensor]) -> None:
    mask, env, *_ = case
    m, n = int(str(env["M"])), int(str(env["N"]))
    if hides_beyond(mask):
        i, j = torch.arange(n - m, n)[:, None], torch.arange(n, n + 40)[None]
        assert not torch.as_tensor(evaluate(mask, {**env, "i": i, "j": j})).any()


def test_causal_masks_hide_keys_past_the_last() -> None:
    causal, reach = op("le", J, I), op("lt", op("sub", I, J), 7)
    assert hides_beyond(causal)
    assert hides_beyond(apply("and", reach, causal))
    assert hides_beyond(apply("or", op("lt", op("add", J, 3), I), causal))
    assert not hides_beyond(reach)
    assert not hides_beyond(apply("or", causal, op("lt", J, 5)))
    assert not hides_beyond(op("le", J, op("add", I, 1)))


def test_the_check_notices_a_wrong_claim() -> None:
    causal = analyse_mask(op("le", J, I))
    strict = analyse_mask(op("lt", J, I))
    rows, keys = torch.tensor([[0, 3], [4, 7]]), torch.tensor([[0, 3], [4, 7]])
    wrong = Visibility(causal.mask, strict.key_ranges, causal.row_ranges, causal.empty, causal.full, True, False)
    with pytest.raises(AssertionError, match="outside the ranges"):
        check(wrong, {"M": 8, "N": 8}, rows, keys)
