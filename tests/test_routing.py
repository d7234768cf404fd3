"""Routes and branches at their borders: what is not a number, too few, out of range, repeated, or nothing at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import attnc
from attnc.routing.choice import pack, unpack

INF, NAN = float("inf"), float("nan")


def op(body: str) -> attnc.Op:
    return attnc.loads(f"attention a {{ {body} }}")


def tokens(generator: torch.Generator, m: int = 7, n: int = 11, heads: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((1, heads, m, 4), (1, heads, n, 4), (1, heads, n, n))
    q, k, _ = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, torch.eye(n, dtype=torch.float64).expand(1, heads, n, n)


def keys_seen(body: str, q: Tensor, k: Tensor, v: Tensor, **inputs: Tensor) -> list[set[int]]:
    """The keys that each row of the first head gives weight."""
    weights = op(body).reference(q, k, v, **inputs)[0, 0]
    return [set(row.nonzero()[:, 0].tolist()) for row in weights]


def blocks_seen(route: str, ranks: list[float], generator: torch.Generator, mask: str = "") -> set[int]:
    """The blocks of two keys that a row takes, by ranks that are given."""
    q, k, v = tokens(generator, 1, 2 * len(ranks))
    body = f"input x: real[N // 2] {mask} route keys(block=2) per query {{ rank x[J] {route} }}"
    (row,) = keys_seen(body, q, k, v, x=torch.tensor(ranks, dtype=torch.float64))
    assert {key // 2 * 2 for key in row} | {key // 2 * 2 + 1 for key in row} == row or mask
    return {key // 2 for key in row}


@pytest.mark.parametrize(
    ("route", "ranks", "blocks"),
    [
        ("select top(2)", [1, 3, 3, 3], {1, 2}),
        ("select top(2)", [NAN, 1, -INF, NAN], {1, 0}),
        ("select top(3)", [NAN, 1, -INF, INF], {3, 1, 0}),
        ("select top(9)", [NAN, 1, -INF, INF], {0, 1, 2, 3}),
        ("select top(0.5)", [1, 5, 2, 4, 3], {1, 3}),
        ("select top(0.1)", [1, 5, 2], {1}),
        ("select top(N // 8)", [1, 5, 2], set()),
        ("select above(2)", [1, 5, 2, NAN, INF], {1, 4}),
        ("select above(9)", [1, 5, 2], set()),
        ("select mass(0.5)", [1, 2, 4, 1], {2}),
        ("select mass(0.51)", [1, 2, 4, 1], {2, 1}),
        ("select mass(0.74, crossing=exclude)", [1, 2, 4, 1], {2}),
        ("select mass(0.75, crossing=exclude)", [1, 2, 4, 1], {2, 1}),
        ("select mass(0.1, crossing=exclude)", [1, 2, 4, 1], {2}),
        ("select mass(0.1, least=3)", [1, 2, 4, 1], {2, 1, 0}),
        ("select mass(1)", [1, 0, NAN, -2], {0}),
        ("select mass(0.5)", [0, 0, 0], {0}),
        ("select top(2) always first(1)", [0, 1, 2, 3], {0, 3}),
        ("select top(1) always first(2), last(1)", [0, 1, 2, 3, 4], {0, 1, 4}),
        ("select top(1) also first(2)", [0, 1, 2, 3], {0, 1, 3}),
        ("select top(2) also first(2)", [4, 1, 2, 3], {0, 1, 3}),
        ("candidates J != 3 select top(2)", [0, 1, 2, 3], {1, 2}),
        ("candidates J < 0 select top(2) always last(1)", [0, 1, 2, 3], {3}),
        ("select mass(0.5) always J == 0", [4, 1, 2, 1], {0}),
        ("select mass(0.5) also J == 3", [4, 1, 2, 1], {0, 3}),
    ],
)
def test_selection(route: str, ranks: list[float], blocks: set[int], generator: torch.Generator) -> None:
    assert blocks_seen(route, ranks, generator) == blocks


def test_only_visible_blocks_are_candidates(generator: torch.Generator) -> None:
    seen = blocks_seen("select top(2)", [1, 2, 3, 4, 5], generator, mask="mask j < 5")
    assert seen == {1, 2}
    assert blocks_seen("select top(1) always last(1)", [1, 2, 3, 4, 5], generator, mask="mask j < 5") == {2}


def test_a_row_without_candidates_is_zero(generator: torch.Generator) -> None:
    q, k, v = tokens(generator)
    leaf = q.requires_grad_()
    out = op("mask false route keys(block=4) per query { rank dot(q, mean(k)) select top(2) }").reference(leaf, k, v)
    assert not out.any()
    out.sum().backward()
    assert not leaf.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("body", ["select given(blocks)", "select given(blocks[b, h, row, :])"])
def test_blocks_given_by_number(body: str, generator: torch.Generator) -> None:
    """Numbers that are no block are left out, repeated ones count once."""
    q, k, v = tokens(generator, 3, 11)
    blocks = torch.tensor([[[[2, 2, -1], [0, 7, 2**30], [-1, -1, -5]]]])
    seen = keys_seen(
        f"input blocks: int[B, H, M, 3] route keys(block=4) per query {{ {body} }}", q, k, v, blocks=blocks
    )
    assert seen == [{8, 9, 10}, {0, 1, 2, 3}, set()]


def test_blocks_given_by_a_map(generator: torch.Generator) -> None:
    q, k, v = tokens(generator, 5, 11)
    chosen = torch.tensor([[[[True, False, False], [False, True, True]]]])
    body = "input map: bool[B, H, 2, (N + 3) // 4] mask causal "
    body += "route keys(block=4) per queries(block=4) { select given(map[b, h, I - (N - M) // 4, J]) }"
    seen = keys_seen(body, q, k, v, map=chosen)
    assert seen == [{0, 1, 2, 3}] * 2 + [{4, 5, 6, 7, 8}, set(range(4, 10)), set(range(4, 11))]


def test_later_routes_choose_among_what_earlier_ones_left(generator: torch.Generator) -> None:
    q, k, v = tokens(generator, 1, 12)
    body = "input x: real[N] route keys(block=4) per query { rank max(x[j]) select top(1) } "
    body += "route keys(block=1) per query { rank -x[j] select top(2) }"
    x = torch.tensor([0, 1, 2, 3, 9, 8, 7, 5, 0, 0, 0, 0], dtype=torch.float64)
    assert keys_seen(body, q, k, v, x=x) == [{7, 6}]


def test_kept_queries_and_a_head_that_chooses(generator: torch.Generator) -> None:
    q, k, v = tokens(generator, 4, 4)
    body = "input x: real[N] keep queries top(2) by x[i] route keys(block=1) per head { rank x[j] select top(3) }"
    x = torch.tensor([3.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    assert keys_seen(body, q, k, v, x=x) == [{0, 2, 3}, set(), set(), {0, 2, 3}]


@pytest.mark.parametrize(("scope", "expected"), [("head", [[1, 2], [0, 1]]), ("heads", [[0, 0], [1, 2]])])
def test_scopes(scope: str, expected: list[list[int]], generator: torch.Generator) -> None:
    """How many blocks each of two rows of two heads takes of the three highest ranks of its scope."""
    q, k, v = tokens(generator, 2, 4, heads=2)
    n = 3 if scope == "heads" else "3 - 2 * h"
    body = (
        f"input x: real[H, M, 2] route keys(block=2) per query {{ rank x[h, row, J] select top({n}, scope={scope}) }}"
    )
    x = torch.tensor([[[1, 2], [4, 3]], [[5, 6], [9, 8]]], dtype=torch.float64)
    if scope == "heads":
        x = torch.tensor([[[1, 2], [4, 3]], [[5, 6], [9, 8]]], dtype=torch.float64)
    weights = op(body).reference(q, k, v, x=x)
    counts = [[int((row > 0).sum()) // 2 for row in head] for head in weights[0]]
    assert counts == expected


def test_heads_that_choose_together_take_the_same(generator: torch.Generator) -> None:
    q, k, v = tokens(generator, 5, 12, heads=4)
    for over in ("group", "heads"):
        body = f"groups h route keys(block=3) per query {{ rank dot(q, mean(k)) over {over} select top(2) }}"
        weights = op(body).reference(q, k, v) > 0
        same = all(torch.equal(weights[:, 0], weights[:, h]) for h in range(4))
        assert same is (over == "heads")


def test_queries_in_blocks_by_position(generator: torch.Generator) -> None:
    """Chunks of a prefill give the rows of the whole."""
    q, k, v = tokens(generator, 13, 13)
    spec = op(
        "mask causal route keys(block=2) per queries(block=4) { rank dot(max(q), mean(k)) select top(2) also self }"
    )
    whole = spec.reference(q, k, v)
    torch.testing.assert_close(spec.reference(q[:, :, 8:], k, v), whole[:, :, 8:])
    torch.testing.assert_close(spec.reference(q[:, :, 4:8], k[:, :, :8], v[:, :, :8]), whole[:, :, 4:8])


@pytest.mark.parametrize("who", ["query", "queries(block=4)", "head"])
def test_visible_blocks_in_closed_form_are_those_of_the_pairs(who: str, generator: torch.Generator) -> None:
    q, k, v = tokens(generator, 13, 21, heads=2)
    reduced = "q" if who == "query" else "mean(q)"
    route = f"route keys(block=3) per {who} {{ rank dot({reduced}, mean(k)) select top(2) always last(1) }}"
    closed, looked = (op(f"mask {mask} {route}").reference(q, k, v) for mask in ("causal", "causal and j < 10 * N"))
    torch.testing.assert_close(closed, looked, rtol=0, atol=0)


@pytest.mark.parametrize("who", ["query", "queries(block=4)"])
@pytest.mark.parametrize("mask", ["causal", "causal and i - j < 9"])
def test_stretches_of_choosers_choose_as_all_at_once(
    who: str, mask: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = tokens(generator, 23, 30, heads=2)
    reduced = "q" if who == "query" else "mean(q)"
    for select in ("top(2)", "top(40, scope=head)", "mass(0.4)"):
        route = f"route keys(block=3) per {who} {{ rank exp(dot({reduced}, mean(k))) select {select} also self }}"
        whole = op(f"mask {mask} {route}").reference(q, k, v)
        with monkeypatch.context() as patched:
            patched.setattr("attnc.routing.choose.MOST_NUMBERS", 100)
            torch.testing.assert_close(op(f"mask {mask} {route}").reference(q, k, v), whole, rtol=0, atol=0)


@pytest.mark.parametrize(("m", "n"), [(0, 5), (3, 0), (1, 1), (9, 4)])
def test_small_sizes(m: int, n: int, generator: torch.Generator) -> None:
    q, k = (torch.randn(1, 2, size, 4, generator=generator) for size in (m, n))
    route = "rank softmax(dot({}(q), mean(k))) select mass(0.5) always self, first(1) also last(2) }}"
    for body in (
        "route keys(block=4) per query { " + route.format(""),
        "route keys(block=3) per queries(block=2) { " + route.format("mean"),
    ):
        assert op(f"mask causal {body}").reference(q, k, k).isfinite().all()
    windows = "key pool(k, window=4, stride=2) value pool(v, window=4, stride=2)"
    out = op(f"branch far {{ {windows} }} branch near {{ mask causal }} output 2 * far + near").reference(q, k, k)
    assert out.shape == q.shape
    assert out.isfinite().all()


def test_merge_is_one_softmax(generator: torch.Generator) -> None:
    q, k, v = tokens(generator, 6, 9, heads=2)
    split = op(
        "branch near { mask causal and i - j < 3 } branch far { mask causal and i - j >= 3 } output merge(near, far)"
    )
    whole = op("mask causal")
    assert_same = torch.testing.assert_close
    assert_same(split.reference(q, k, v, return_lse=True), whole.reference(q, k, v, return_lse=True))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    grads = [torch.autograd.grad(spec.reference(*leaves).square().sum(), leaves) for spec in (split, whole)]
    assert_same(*grads)


def test_a_row_that_no_branch_sees_is_zero(generator: torch.Generator) -> None:
    q, k, v = tokens(generator, 3, 4)
    spec = op("branch x { mask j < 2 and i > 1 } branch y { mask j > i } output x + y + 1")
    out = spec.reference(q, k, v)
    assert [bool(row.any()) for row in out[0, 0]] == [True, True, True]
    spec = op("branch x { mask i > 1 } branch y { mask i > 2 } output x + y + 1")
    assert [bool(row.any()) for row in spec.reference(q, k, v)[0, 0]] == [False, True, True]


def test_words_hold_a_bit_for_each_block(generator: torch.Generator) -> None:
    chosen = torch.rand(2, 3, 5, 70, generator=generator) > 0.5
    words = pack(chosen)
    assert words.dtype is torch.int32
    assert words.shape == (2, 3, 5, 3)
    torch.testing.assert_close(unpack(words)[..., :70], chosen)
