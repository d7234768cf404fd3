"""The prelude: each mask against brute force and published vectors, each function against its formula."""

import math
from collections.abc import Callable

import pytest
import torch

from attnc.analyse.scalar import evaluate
from attnc.check import check
from attnc.grammar import Source, SpecError, std_source
from attnc.grammar.parse import parse

LENGTH = 24


def mask(expression: str, length: int = LENGTH, declared: str = "", **env: object) -> torch.Tensor:
    """Which keys (columns) each query (row) may see."""
    program = check(Source("<test>", f"attention a {{ {declared} mask {expression} }}"))
    places = torch.arange(length)
    given = {"i": places[:, None], "j": places[None, :], "N": length, "M": length, "b": torch.tensor(0), **env}
    found = torch.as_tensor(evaluate(program.body.mask, given))
    return found.expand(length, length)


def brute(rule: Callable[[int, int], bool], length: int = LENGTH) -> torch.Tensor:
    return torch.tensor([[bool(rule(i, j)) for j in range(length)] for i in range(length)])


def is_power_of_two(x: int) -> bool:
    return x > 0 and math.log2(x) == int(math.log2(x))


@pytest.mark.parametrize(
    ("expression", "rule"),
    [
        ("causal", lambda i, j: j <= i),
        ("window(3)", lambda i, j: i - 3 < j < i + 3),
        ("causal and window(3)", lambda i, j: j in (i, i - 1, i - 2)),
        ("sliding_window(3)", lambda i, j: j in (i, i - 1, i - 2)),
        ("between(-2, 1)", lambda i, j: j - i in (-2, -1, 0, 1)),
        ("prefix(5)", lambda i, j: j < 5),
        ("causal or prefix(5)", lambda i, j: j <= i or j < 5),
        ("sink(2) or window(2)", lambda i, j: j < 2 or abs(i - j) < 2),
        ("global_tokens(2)", lambda i, j: i < 2 or j < 2),
        ("block(5)", lambda i, j: i // 5 == j // 5),
        ("block_causal(5)", lambda i, j: j < (i // 5 + 1) * 5),
        ("strided(4)", lambda i, j: abs(i - j) % 4 == 0),
        ("dilated(2, 3)", lambda i, j: j - i in (-3, 0, 3)),
        ("fixed(6, 2)", lambda i, j: j % 6 in (4, 5)),
        ("is_power_of_two(i - j)", lambda i, j: is_power_of_two(i - j)),
    ],
)
def test_masks_on_a_line(expression: str, rule: Callable[[int, int], bool]) -> None:
    assert torch.equal(mask(expression), brute(rule))


def test_same_document_reads_the_input_it_is_given() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 1, 4]])
    found = mask("same_document(doc)", 6, "input doc: int[B, N]", doc=ids)
    assert torch.equal(found, ids == ids.T)


def test_power_blocks_sees_what_was_published() -> None:
    found = mask("power_blocks(1, 2)", 17)
    rows = {0: {0}, 1: {0, 1}, 5: {0, 1, 3, 4, 5}, 16: {0, 8, 12, 14, 15, 16}}
    assert {row: set(found[row].nonzero().flatten().tolist()) for row in rows} == rows


def keys(text: str) -> list[set[int]]:
    """``0..2 {1,4}`` as sets."""
    found = []
    for part in text.split():
        times = 1
        if "x" in part:
            part, count = part.split("x")
            times = int(count)
        if part.startswith("{"):
            chosen = set(map(int, part[1:-1].split(",")))
        else:
            first, last = map(int, part.split(".."))
            chosen = set(range(first, last + 1))
        found += [chosen] * times
    return found


PUBLISHED = [
    (8, "neighborhood(3)", "0..2 0..2 1..3 2..4 3..5 4..6 5..7 5..7"),
    (8, "neighborhood(4)", "0..3 0..3 0..3 1..4 2..5 3..6 4..7 4..7"),
    (8, "neighborhood_causal(3)", "0..0 0..1 0..2 1..3 2..4 3..5 4..6 5..7"),
    (10, "neighborhood(5, stride=2)", "0..4 0..4 1..5 1..5 3..7 3..7 5..9 5..9 5..9 5..9"),
    (10, "neighborhood_causal(4, stride=2)", "0..0 0..1 0..2 0..3 2..4 2..5 4..6 4..7 6..8 6..9"),
    (10, "neighborhood(4, stride=4)", "0..3x4 4..7x4 6..9x2"),
    (10, "neighborhood_causal(4, stride=4)", "0..0 0..1 0..2 0..3 4..4 4..5 4..6 4..7 6..8 6..9"),
    (
        9,
        "neighborhood(3, dilation=2)",
        "{0,2,4} {1,3,5} {0,2,4} {1,3,5} {2,4,6} {3,5,7} {4,6,8} {3,5,7} {4,6,8}",
    ),
    (
        10,
        "neighborhood(3, dilation=3)",
        "{0,3,6} {1,4,7} {2,5,8} {0,3,6} {1,4,7} {2,5,8} {3,6,9} {1,4,7} {2,5,8} {3,6,9}",
    ),
]


@pytest.mark.parametrize(("length", "expression", "expected"), PUBLISHED)
def test_neighbourhoods_see_what_was_published(length: int, expression: str, expected: str) -> None:
    found = [set(row.nonzero().flatten().tolist()) for row in mask(expression, length)]
    assert found == keys(expected)


def natten(x: int, y: int, length: int, size: int, dilation: int, stride: int, causal: bool) -> bool:
    """One axis of GNA, as its definition has it."""
    if x % dilation != y % dilation:
        return False
    x, y, length = x // dilation, y // dilation, -((x % dilation - length) // dilation)
    if causal:
        leader = min(x // stride * stride + stride - 1, length - 1)
        return max(leader - size + 1, 0) <= y <= x
    leader = min(x // stride * stride + stride // 2, length - 1)
    left, right = size // 2, size // 2 + size % 2 - 1
    centre = min(max(leader, left), length - 1 - right)
    return centre - left <= y <= centre + right


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("size", "dilation", "stride"), [(2, 1, 1), (3, 2, 2), (4, 3, 2), (5, 2, 5), (6, 1, 4), (7, 3, 1)]
)
@pytest.mark.parametrize("length", [21, 22])
def test_neighbourhoods_are_those_of_natten(length: int, size: int, dilation: int, stride: int, causal: bool) -> None:
    name = "neighborhood_causal" if causal else "neighborhood"
    found = mask(f"{name}({size}, dilation={dilation}, stride={stride})", length)
    assert torch.equal(found, brute(lambda i, j: natten(i, j, length, size, dilation, stride, causal), length))


@pytest.mark.parametrize("causal", [False, True])
def test_neighbourhoods_on_a_grid_are_the_and_of_their_axes(causal: bool) -> None:
    T, Y, X = 3, 5, 6
    name = "neighborhood3d_causal" if causal else "neighborhood3d"
    found = mask(f"{name}(2, 3, 4)", T * Y * X, "space (t: T, y: Y, x: X)", T=T, Y=Y, X=X)

    def rule(i: int, j: int) -> bool:
        one, other = ((n // (X * Y), n // X % Y, n % X) for n in (i, j))
        return all(
            natten(a, c, length, size, 1, 1, causal and axis == 0)
            for axis, (a, c, length, size) in enumerate(zip(one, other, (T, Y, X), (2, 3, 4), strict=True))
        )

    assert torch.equal(found, brute(rule, T * Y * X))


@pytest.mark.parametrize(
    ("expression", "rule"),
    [
        ("neighborhood2d(3, 2)", None),
        ("block2d(2, 3)", lambda a, c: a[0] // 2 == c[0] // 2 and a[1] // 3 == c[1] // 3),
        ("grid2d(2, 3)", lambda a, c: a[0] % 2 == c[0] % 2 and a[1] % 3 == c[1] % 3),
        (
            "shifted_block2d(2, 3, 1, 2)",
            lambda a, c: (a[0] - 1) // 2 == (c[0] - 1) // 2 and (a[1] - 2) // 3 == (c[1] - 2) // 3,
        ),
    ],
)
def test_masks_on_a_plane(expression: str, rule: Callable[..., bool] | None) -> None:
    Y, X = 4, 6
    rule = rule or (lambda a, c: natten(a[0], c[0], Y, 3, 1, 1, False) and natten(a[1], c[1], X, 2, 1, 1, False))
    found = mask(expression, Y * X, "space (y: Y, x: X)", Y=Y, X=X)
    assert torch.equal(found, brute(lambda i, j: rule((i // X, i % X), (j // X, j % X)), Y * X))


@pytest.mark.parametrize(
    ("expression", "formula"),
    [
        ("clamp(x, -1, 2)", lambda x: x.clamp(-1, 2)),
        ("relu(x)", torch.relu),
        ("relu2(x)", lambda x: torch.relu(x) ** 2),
        ("silu(x)", torch.nn.functional.silu),
        ("gelu(x)", torch.nn.functional.gelu),
        ("elu(x)", torch.nn.functional.elu),
        ("softplus(x)", torch.nn.functional.softplus),
        ("softcap(x, 5)", lambda x: 5 * torch.tanh(x / 5)),
        ("laplace(x)", lambda x: 0.5 * (1 + torch.erf((x - 0.5**0.5) / ((1 / (4 * math.pi)) ** 0.5 * 2**0.5)))),
    ],
)
def test_functions_of_a_number(expression: str, formula: Callable[[torch.Tensor], torch.Tensor]) -> None:
    spec = f"attention a {{ input data: real[N] let x = data[j] normalize {expression} }}"
    program = check(Source("<test>", spec))
    data = torch.linspace(-30, 30, 61, dtype=torch.float64)
    found = evaluate(program.body.weight, {"data": data, "j": torch.arange(61), "N": 61})
    torch.testing.assert_close(found, formula(data))


def softmax(s: torch.Tensor) -> torch.Tensor:
    return s.softmax(-1)


@pytest.mark.parametrize(
    ("expression", "formula"),
    [
        ("softmax(score)", softmax),
        ("softmax1(score)", lambda s: s.exp() / (1 + s.exp().sum(-1, keepdim=True))),
        ("softmax_sink(score, 0.7)", lambda s: s.exp() / (math.exp(0.7) + s.exp().sum(-1, keepdim=True))),
        ("cog(score)", lambda s: s.sign() * softmax(s.abs())),
        ("affine(score, 0.5, 0.25)", lambda s: 0.5 * softmax(s) + 0.25),
        ("inline(score)", lambda s: s - s.mean(-1, keepdim=True) + 1 / s.shape[-1]),
        ("sigmoid_n(score)", lambda s: (s - math.log(s.shape[-1])).sigmoid()),
        ("score / rowcount", lambda s: s / s.shape[-1]),
    ],
)
def test_normalisations(expression: str, formula: Callable[[torch.Tensor], torch.Tensor]) -> None:
    from attnc.reference import evaluate as run

    program = check(Source("<test>", f"attention a {{ normalize {expression} }}"))
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    found = run(program, q, k, v)
    torch.testing.assert_close(found, formula(q @ k.mT / 2) @ v)


def test_vector_functions() -> None:
    from attnc.reference import evaluate as run

    F = torch.nn.functional
    q, k, v = (
        torch.randn(1, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(3)
    )
    cases = {
        "l2norm": lambda x: F.normalize(x, dim=-1),
        "rmsnorm": lambda x: F.rms_norm(x, (4,), eps=1e-6),
        "softmax_d": lambda x: x.softmax(-1),
    }
    for name, formula in cases.items():
        program = check(Source("<test>", f"attention a {{ query {name}(q) normalize score score dot(q, k) }}"))
        torch.testing.assert_close(run(program, q, k, v), formula(q) @ k.mT @ v)


def test_every_function_of_the_prelude_is_well_formed() -> None:
    """Called with numbers, each function checks, or asks for a vector, an input or a space by name."""
    for function in parse(std_source()).functions:
        arguments = ", ".join(["2"] * sum(p.default is None for p in function.parameters))
        call = f"{function.name.text}({arguments})" if function.parameters else function.name.text
        try:
            check(
                Source(
                    "<test>", f"attention a {{ space (t: T, y: Y, x: X) normalize 1 if {call} == {call} else score }}"
                )
            )
        except SpecError as error:
            shown = str(error)
            assert "found a scalar" in shown or "no parts" in shown, shown
