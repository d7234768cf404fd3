"""Routes, branches, running sums and triangular systems: what they become in the program."""

import pytest

from attnc.check import check
from attnc.grammar import Source
from attnc.ir.nodes import Literal, Reduce
from attnc.ir.printer import expression, print_program
from attnc.ir.program import Program
from attnc.ir.reader import read_program
from attnc.ir.traverse import postorder
from attnc.ir.verify import verify_program


def program(body: str) -> Program:
    return check(Source("<test>", f"attention a {{ {body} }}"))


def test_a_route_is_carried_into_the_program() -> None:
    (route,) = program(
        "mask causal route keys(block=512) per query {"
        "    rank dot(q, mean(k)) over group select top(3) always self, last(2) }"
    ).body.routes
    assert isinstance(route.keys_block, Literal)
    assert (route.keys_block.value, route.queries) == (512, "query")
    assert route.rank is not None
    assert expression(route.rank) == "sum_g(dot(q, mean_j(k)))"
    assert route.rank.axes == frozenset("bhiJ")
    assert route.select is not None
    assert (route.select.how, [name for name, _ in route.always]) == ("top", ["self", "last"])
    assert route.span is not None
    assert route.span.text.startswith("route keys")


def test_blocks_are_taken_by_name_or_condition() -> None:
    (route,) = program(
        "input far: bool[B] mask causal route keys(block=4) per query { rank max(dot(q, k)) candidates J < I"
        "    select top(0.5, scope=head) always first(2), J == I - 3 also self, far[b] and N < 64 }"
    ).body.routes
    assert route.candidates is not None
    assert expression(route.candidates) == "J < i // 4"
    assert [name for name, _ in route.always] == ["first", "where"]
    assert [name for name, _ in route.also] == ["self", "where"]
    assert route.select is not None
    assert dict(route.select.options) == {"scope": "head"}


def test_windows_in_a_rank_are_reduced_to_blocks() -> None:
    (route,) = program(
        "route keys(block=8) per query {"
        "    rank max(groupsum(softmax(dot(q, pool(k, window=4, stride=2))))) select top(2) }"
    ).body.routes
    assert route.rank is not None
    assert {node.over for node in postorder(route.rank) if isinstance(node, Reduce)} == {"w"}
    assert route.rank.axes == frozenset("bhiJ")
    assert expression(route.rank).startswith("max_w(sum_g(")


def test_a_branch_may_attend_to_windows() -> None:
    made = program(
        "branch near { mask causal } branch far { key pool(k, window=4, stride=2) value pool(v, window=4, stride=2) }"
        "output near + far"
    )
    near, far = (body for _, body in made.branches)
    assert near.windows is None
    assert far.windows is not None
    assert [expression(size) for size in far.windows] == ["4", "2"]
    assert expression(far.score) == "dot(q, window_j(k, 4, 2)) * rsqrt(real(D))"


def test_softmax_in_a_rank_is_over_the_candidates() -> None:
    (route,) = program(
        "route keys(block=64) per queries(block=128) { rank softmax(dot(mean(q), mean(k))) select mass(0.9) }"
    ).body.routes
    assert route.rank is not None
    assert {node.over for node in postorder(route.rank) if isinstance(node, Reduce)} == {"J"}
    assert route.select is not None
    assert dict(route.select.options)["crossing"] == "include"


def test_branches_share_what_stands_around_them() -> None:
    made = program(
        "input gate: real[B, H, M] mask causal score 2 * dot(q, k)"
        "branch near { mask causal and window(8) } branch far { score dot(q, k) }"
        "output gate[b, h, row] * near + far"
    )
    near, far = (body for _, body in made.branches)
    assert expression(near.score) == "2.0 * dot(q, k)"
    assert expression(far.mask) == "j <= i"
    assert expression(made.body.output) == "gate[b, h, row] * merge(near) + merge(far)"
    assert made.spans[made.branches[0][1].mask]


def test_routes_around_branches_add_to_those_inside() -> None:
    route = "route keys(block=8) per query { rank dot(q, mean(k)) select top(%d) }"
    made = program(f"{route % 1} branch c {{ {route % 2} }} branch d {{}} output c + d")
    assert [len(body.routes) for _, body in made.branches] == [2, 1]
    assert made.body.routes == ()


def test_merged_branches_have_one_softmax() -> None:
    made = program("branch near { mask window(8) } branch far { mask not window(8) } output merge(near, far)")
    assert expression(made.body.output) == "merge(near, far)"


def test_running_sums_and_decays() -> None:
    made = program("input f: real[B, H, N] let G = cumsum(f) score dot(q, k) * exp(G[b, h, i] - G[b, h, j])")
    assert "cumsum(f[b, h, j], i) - cumsum(f[b, h, j], j)" in expression(made.body.score)
    made = program("input f: real[B, H, N, D] let G = cumsum(f[b, h, j, :]) normalize score score dot(q, k, decay=G)")
    assert expression(made.body.score).startswith("dot(q, k * exp(cumsum(f[b, h, j, :], i)")


def test_solve_sees_the_keys_of_both_tokens() -> None:
    made = program("input beta: real[B, H, N] value solve(beta[b, h, i] * dot(k[i], k[j]) if j < i else 1, v)")
    assert "dot($k, k)" in expression(made.body.value)
    assert made.body.value.axes == frozenset("bhj")


@pytest.mark.parametrize(
    "body",
    [
        "route keys(block=64) per query { rank dot(q, mean(k)) select top(16) }",
        "input w: real[B, M, 4] "
        "route keys(block=1) per query { rank sum(n, w[b, row, n]) * dot(q, k) select above(0.5) }",
        "route keys(block=8) per query { rank sum(groupsum(dot(q, pool(k, window=4, stride=2)))) candidates J < I "
        "select mass(0.5, least=2, scope=heads) always first(1), J == I also N < 64 }",
        "key pool(k, window=4) value pool(v, window=4) mask 4 * j + 3 <= i",
        "input x: bool[B, G, (N + 15) // 16, (N + 7) // 8] "
        "route keys(block=8) per queries(block=16) { select given(x) }",
        "input x: int[B, H, M, 4] "
        "route keys(block=8) per query { select given(x) } keep queries top(N // 2) by norm2(q)",
        "branch c { mask window(3) } branch d { mask causal } output c - 0.5 * d",
        "input f: real[B, H, N, D] let G = cumsum(f) normalize score score dot(q, k, decay=G)",
        "value solve(dot(k[i], k), v)",
    ],
)
def test_programs_with_routes_and_branches_read_back(body: str) -> None:
    made = program(body)
    verify_program(made)
    assert read_program(print_program(made)) == made
