"""The reference against attention written by hand in torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import strategies as make
import torch
from strategies import I, J, K, Q, V, both, program
from torch import Tensor

from attnc.errors import UnsupportedError
from attnc.ir.build import apply, cumsum, index, literal, matvec, param, read, reduce_width, size, slice_, solve, token
from attnc.ir.nodes import Input, Kind, Node
from attnc.ir.program import Parameter, Program
from attnc.ir.specialize import specialize
from attnc.reference import evaluate

AT = {"B": 2, "H": 4, "G": 2, "M": 5, "N": 7, "D": 8, "E": 6}
CAUSAL = both("le", J, I)
VISIBLE = torch.arange(7) <= torch.arange(5)[:, None] + 2
SCORE = make.scaled(Q, K)


def run(spec: Program, seed: int = 0, **extents: int) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """The output, and q, keys and values for every query head, and the inputs."""
    q, k, v, inputs = make.tensors(spec, AT | extents, seed)
    output = evaluate(spec, q, k, v, inputs, extents=extents)
    assert isinstance(output, Tensor)
    return output, q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), inputs


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def hidden(score: Tensor, mask: Tensor) -> Tensor:
    return score.masked_fill(~mask, -math.inf)


def positions() -> tuple[Tensor, Tensor]:
    return torch.arange(5, dtype=torch.float64)[:, None] + 2, torch.arange(7, dtype=torch.float64)


def test_softmax_is_torchs() -> None:
    output, q, k, v, _ = run(program())
    torch.testing.assert_close(output, torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_causal_ends_on_the_last_key() -> None:
    output, q, k, v, _ = run(program(mask=CAUSAL))
    torch.testing.assert_close(output, hidden(scores(q, k), VISIBLE).softmax(-1) @ v)


def test_raw_rows() -> None:
    output, q, k, v, _ = run(program(mask=both("le", J, index("row"))))
    torch.testing.assert_close(output, hidden(scores(q, k), torch.ones(5, 7).tril().bool()).softmax(-1) @ v)


def test_alibi() -> None:
    score = apply("add", SCORE, apply("mul", make.reading("slope"), apply("sub", J, I)))
    output, q, k, v, inputs = run(program(score, CAUSAL))
    i, j = positions()
    biased = scores(q, k) + inputs["slope"][:, None, None] * (j - i)
    torch.testing.assert_close(output, hidden(biased, VISIBLE).softmax(-1) @ v)


def test_softcap() -> None:
    output, q, k, v, _ = run(program(make.softcap(SCORE, 2.0)))
    torch.testing.assert_close(output, ((scores(q, k) / 2).tanh() * 2).softmax(-1) @ v)


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda s: (s - math.log(7)).sigmoid(),
    "relu": torch.relu,
    "relu2": lambda s: s.relu() ** 2,
    "laplace": lambda s: 0.5 * (1 + torch.erf((s - math.sqrt(0.5)) / (math.sqrt(0.25 / math.pi) * math.sqrt(2)))),
    "identity": lambda s: s,
    "softmax1": lambda s: s.exp() / (1 + s.exp().masked_fill(~VISIBLE, 0).sum(-1, keepdim=True)),
    "affine": lambda s: 0.75 * hidden(s, VISIBLE).softmax(-1) + 0.5 / 7,
    "cog": lambda s: s.sign() * hidden(s.abs(), VISIBLE).softmax(-1),
    "mean": lambda s: 1 / VISIBLE.sum(-1, keepdim=True).double().expand_as(s),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name: str) -> None:
    """A masked pair has weight 0, whatever the normalisation gives it."""
    output, q, k, v, _ = run(program(SCORE, CAUSAL, make.NORMALIZATIONS[name](SCORE)))
    torch.testing.assert_close(output, WEIGHTS[name](scores(q, k)).masked_fill(~VISIBLE, 0) @ v)


def test_cog_with_a_score_of_zero() -> None:
    score = both("where", apply("eq", I, J), 0.0, SCORE)
    output, q, k, v, _ = run(program(score, CAUSAL, make.cog(score)))
    i, j = positions()
    s = scores(q, k).masked_fill(i == j, 0)
    torch.testing.assert_close(output, (s.sign() * hidden(s.abs(), VISIBLE).softmax(-1)) @ v)


def test_sink() -> None:
    output, q, k, v, inputs = run(program(SCORE, CAUSAL, make.softmax(SCORE, make.reading("sink"))))
    sink = inputs["sink"][:, None, None].expand(2, -1, 5, 1)
    weights = torch.cat((hidden(scores(q, k), VISIBLE), sink), -1).softmax(-1)[..., :-1]
    torch.testing.assert_close(output, weights @ v)


def test_inline_rows_sum_to_one() -> None:
    output, q, k, v, _ = run(program(SCORE, CAUSAL, make.inline(SCORE)))
    s, count = scores(q, k).masked_fill(~VISIBLE, 0), VISIBLE.sum(-1, keepdim=True)
    weights = (s - s.sum(-1, keepdim=True) / count + 1 / count).masked_fill(~VISIBLE, 0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5, dtype=torch.float64))
    torch.testing.assert_close(output, weights @ v)


def test_decay_of_the_numerator_alone() -> None:
    output, q, k, v, _ = run(program(SCORE, CAUSAL, make.decayed(SCORE)))
    i, j = positions()
    weights = hidden(scores(q, k), VISIBLE).softmax(-1) * (-0.125 * (i - j).abs()).exp()
    torch.testing.assert_close(output, weights @ v)


def test_tapa() -> None:
    output, q, k, v, _ = run(program(make.tapa(), CAUSAL, make.softmax(make.tapa())))
    i, j = positions()
    amplitude, phase = ((q[..., part] @ k[..., part].mT) / math.sqrt(8) for part in (slice(0, 4), slice(4, 8)))
    s = amplitude * (2 * math.pi * (i - j).abs() ** 0.5 * phase).cos()
    torch.testing.assert_close(output, hidden(s, VISIBLE).softmax(-1) @ v)


def _rope(x: Tensor, at: Tensor, base: float, rotated: int) -> Tensor:
    """As in Llama: both halves of the rotated part as one complex number."""
    half = rotated // 2
    angle = at[:, None] * base ** (-torch.arange(half, dtype=torch.float64) * 2 / rotated)
    turned = torch.complex(x[..., :half], x[..., half:rotated]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag, x[..., rotated:]), -1)


@pytest.mark.parametrize("rotated", [8, 4])
def test_rotary_prologue_over_rms_norm(rotated: int) -> None:
    query, key = (
        make.rope(make.rmsnorm(x, size("D")), at, literal(100.0), literal(rotated)) for x, at in ((Q, I), (K, J))
    )
    output, q, k, v, _ = run(program(make.scaled(query, key)))
    q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    i, j = positions()
    q, k = _rope(q, i[:, 0], 100.0, rotated), _rope(k, j, 100.0, rotated)
    torch.testing.assert_close(output, scores(q, k).softmax(-1) @ v)


def test_l2_norm_and_squared_norms() -> None:
    distance = both(
        "mul", apply("sub", make.dot(Q, K), both("mul", apply("add", make.dot(Q, Q), make.dot(K, K)), 0.5)), 2
    )
    score = apply("add", make.dot(make.l2norm(Q), make.l2norm(K)), distance)
    output, q, k, v, _ = run(program(score))
    near = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).mT
    torch.testing.assert_close(output, (near - torch.cdist(q, k) ** 2).softmax(-1) @ v)


def test_tables_documents_and_gates() -> None:
    mask = apply("and", apply("eq", make.reading("doc"), make.reading("seg")), make.reading("keep"))
    score = apply("add", SCORE, make.reading("table"))
    output, q, k, v, inputs = run(program(score, mask, gate=apply("sigmoid", make.reading("gate"))))
    i, j = positions()
    s = scores(q, k) + inputs["table"][:, (j - i + 6).long()]
    seen = ((inputs["doc"][:, None, :] == inputs["seg"][:, :, None]) & inputs["keep"][:, None, :])[:, None]
    expected = hidden(s, seen).softmax(-1).nan_to_num() @ v * inputs["gate"].sigmoid()
    torch.testing.assert_close(output, expected)
    assert not seen.any(-1).all()


def test_values() -> None:
    output, q, k, v, inputs = run(program(value=apply("mul", V, make.reading("weigh"))))
    weigh = inputs["weigh"].repeat_interleave(2, 1)[..., None]
    torch.testing.assert_close(output, scores(q, k).softmax(-1) @ (v * weigh))
    output, q, k, v, _ = run(program(value=slice_(K, literal(2), literal(7))))
    torch.testing.assert_close(output, scores(q, k).softmax(-1) @ k[..., 2:7])
    output, q, k, v, _ = run(program(value=both("mul", V, apply("sub", I, J))))
    i, j = positions()
    torch.testing.assert_close(output, (scores(q, k).softmax(-1) * (i - j)) @ v)


def test_matrices_and_reductions_over_the_width() -> None:
    matrix = Input("matrix", Kind.REAL, (size("H"), size("D"), size("D")))
    query = matvec(Q, read(matrix, (index("h"), None, None)))
    score = apply("add", make.dot(query, K), reduce_width("max", K))
    output, q, k, v, inputs = run(program(score, extra=(matrix,)))
    s = (q @ inputs["matrix"]) @ k.mT + k.amax(-1)[..., None, :]
    torch.testing.assert_close(output, s.softmax(-1) @ v)


def test_a_row_maximum_below_zero() -> None:
    score = both("sub", SCORE, 100.0)
    output, q, k, v, _ = run(program(score, CAUSAL, apply("sub", score, make.rowmax(score))))
    s = scores(q, k)
    weights = (s - hidden(s, VISIBLE).amax(-1, keepdim=True)).masked_fill(~VISIBLE, 0)
    torch.testing.assert_close(output, weights @ v)


def test_division_floors() -> None:
    distance = apply("sub", J, I)
    mask = both("or", both("eq", both("mod", distance, 3), 1), both("eq", both("floordiv", distance, 2), -2))
    score = apply("add", SCORE, both("mod", both("mul", distance, 0.7), 2.0))
    output, q, k, v, _ = run(program(score, mask))
    seen = torch.tensor([[(j - i) % 3 == 1 or (j - i) // 2 == -2 for j in range(7)] for i in range(2, 7)])
    added = torch.tensor([[(j - i) * 0.7 % 2.0 for j in range(7)] for i in range(2, 7)], dtype=torch.float64)
    torch.testing.assert_close(output, hidden(scores(q, k) + added, seen).softmax(-1).nan_to_num() @ v)


def test_other_groups() -> None:
    spec = program()
    q, k, v, _ = make.tensors(spec, AT)
    odd = Program("test", (), (), (), both("mod", index("h"), size("G")), spec.body)
    output = evaluate(odd, q, k, v)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1))
    torch.testing.assert_close(output, expected)


def test_extents_of_a_space() -> None:
    row, column = both("floordiv", J, size("X")), both("mod", J, size("X"))
    plain = program(mask=both("lt", row, column))
    spec = Program("grid", (), (), (("y", size("Y")), ("x", size("X"))), plain.group, plain.body)
    q, k, v, _ = make.tensors(spec, AT | {"N": 6})
    output = evaluate(spec, q, k, v, extents={"Y": 2, "X": 3})
    seen = torch.tensor([[j // 3 < j % 3 for j in range(6)]])
    s = hidden(scores(q, k.repeat_interleave(2, 1)), seen)
    torch.testing.assert_close(output, s.softmax(-1) @ v.repeat_interleave(2, 1))
    with pytest.raises(ValueError, match="8 positions"):
        evaluate(spec, q, k, v, extents={"Y": 2, "X": 4})
    with pytest.raises(ValueError, match="`X` is missing"):
        evaluate(spec, q, k, v, extents={"Y": 2})


def test_running_sums_and_solves() -> None:
    decay = apply("sub", cumsum(make.reading("weigh"), I), cumsum(make.reading("weigh"), J))
    output, q, k, v, inputs = run(program(SCORE, CAUSAL, apply("mul", SCORE, apply("exp", decay))))
    sums = inputs["weigh"].cumsum(-1).repeat_interleave(2, 1)
    weights = scores(q, k) * (sums[..., 2:, None] - sums[..., None, :]).exp()
    torch.testing.assert_close(output, weights.masked_fill(~VISIBLE, 0) @ v)

    pair = both("where", apply("eq", I, J), 1.0, make.dot(Q, K))
    with pytest.raises(ValueError, match="5 and 7"):
        run(program(SCORE, CAUSAL, SCORE, value=solve(pair, V)))
    output, q, k, v, _ = run(program(SCORE, CAUSAL, SCORE, value=solve(pair, V)), M=7)
    lower = (q @ k.mT).tril(-1) + torch.eye(7)
    torch.testing.assert_close(output, scores(q, k).tril() @ torch.linalg.solve(lower, v))


@pytest.mark.parametrize("rows", [7, 5])
def test_lucid(rows: int) -> None:
    """The triangle couples keys with keys: ``exp(k k' / sqrt(D) - sqrt(D))`` of keys of length ``sqrt(D)``."""
    query, key = (both("mul", make.l2norm(x), math.sqrt(8)) for x in (token("$k"), K))
    pair = apply("exp", both("sub", make.scaled(query, key), math.sqrt(8)))
    output, q, k, v, _ = run(program(SCORE, CAUSAL, value=solve(pair, V)), M=rows)
    unit = torch.nn.functional.normalize(k, dim=-1)
    lower = (math.sqrt(8) * (unit @ unit.mT - 1)).exp().tril()
    seen = torch.ones(7, 7).tril().bool()[7 - rows :]
    torch.testing.assert_close(output, hidden(scores(q, k), seen).softmax(-1) @ torch.linalg.solve(lower, v))


@pytest.mark.parametrize("spec", [program(), program(mask=CAUSAL), program(SCORE, None, make.relu(SCORE))])
@pytest.mark.parametrize("empty", [{"M": 0}, {"N": 0}, {"B": 0}, {"M": 0, "N": 0}])
def test_nothing_to_do(spec: Program, empty: dict[str, int]) -> None:
    at = AT | empty
    q, k, v, inputs = make.tensors(spec, at)
    output = evaluate(spec, q.requires_grad_(), k, v, inputs)
    torch.testing.assert_close(output, torch.zeros(at["B"], 4, at["M"], 6, dtype=torch.float64))
    output.sum().backward()
    torch.testing.assert_close(q.grad, torch.zeros_like(q))


def test_rows_that_see_nothing_are_zero_whatever_the_output_says() -> None:
    spec = program(SCORE, both("lt", J, both("sub", I, 3)))
    output, *_ = run(spec)
    assert (output[:, :, :2] == 0).all()
    assert (output[:, :, 2:] != 0).all()
    shifted = Program("test", (), (), (), spec.group, _with_output(spec, both("add", spec.body.output, 1.0)))
    output, *_ = run(shifted)
    assert (output[:, :, :2] == 0).all()


def _with_output(spec: Program, output: Node):
    return type(spec.body)(spec.body.mask, spec.body.score, spec.body.weight, spec.body.value, output)


def test_log_sum_exp() -> None:
    mask = both("lt", J, both("sub", I, 3))
    q, k, v, inputs = make.tensors(program(SCORE, mask, make.softmax(SCORE, make.reading("sink"))), AT)
    s = hidden(scores(q, k.repeat_interleave(2, 1)), torch.arange(7) < torch.arange(5)[:, None] - 1)
    _, lse = evaluate(program(SCORE, mask), q, k, v, return_lse=True)
    torch.testing.assert_close(lse, s.logsumexp(-1))
    assert (lse[:, :, :2] == -math.inf).all()
    _, lse = evaluate(program(SCORE, mask, make.cog(SCORE)), q, k, v, return_lse=True)
    torch.testing.assert_close(lse, s.abs().masked_fill(s == -math.inf, -math.inf).logsumexp(-1))
    _, lse = evaluate(program(SCORE, mask, make.softmax(SCORE, make.reading("sink"))), q, k, v, inputs, return_lse=True)
    both_sums = torch.logaddexp(s.logsumexp(-1), inputs["sink"][:, None])
    torch.testing.assert_close(lse[:, :, 2:], both_sums[:, :, 2:])
    with pytest.raises(UnsupportedError, match="no softmax denominator"):
        evaluate(program(SCORE, mask, make.sigmoid(SCORE)), q, k, v, return_lse=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    """Half precision is computed in f32: positions past 256 would be wrong in bf16."""
    score = apply("add", SCORE, both("mul", apply("sub", J, I), 0.01))
    spec = program(score)
    q, k, v, _ = make.tensors(spec, AT | {"N": 400}, dtype=dtype)
    output = evaluate(spec, q, k, v)
    assert isinstance(output, Tensor)
    assert output.dtype is dtype
    exact = evaluate(spec, q.double(), k.double(), v.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(output.double(), exact, rtol=tolerance, atol=tolerance / 4)


def test_a_read_outside_is_an_error_only_where_it_is_visible() -> None:
    near = Input("near", Kind.REAL, (literal(3),))
    keep = Input("keep_near", Kind.BOOL, (literal(3),))
    distance = apply("sub", I, J)
    score = apply("add", SCORE, read(near, (distance,)))
    inputs = {"near": torch.randn(3).double(), "keep_near": torch.tensor([True, False, True])}
    q, k, v, _ = make.tensors(program(), AT)
    window = apply("and", CAUSAL, both("lt", distance, 3))
    evaluate(program(score, window, extra=(near,)), q, k, v, inputs)
    with pytest.raises(IndexError, match=r"near\[i - j\].* is read at 3 of 3"):
        evaluate(program(score, apply("and", CAUSAL, both("lt", distance, 4)), extra=(near,)), q, k, v, inputs)
    kept = apply("and", window, read(keep, (distance,)))
    evaluate(program(score, kept, extra=(near, keep)), q, k, v, inputs)
    with pytest.raises(IndexError, match=r"keep_near\[i - j\]"):
        evaluate(program(SCORE, apply("or", CAUSAL, read(keep, (distance,))), extra=(keep,)), q, k, v, inputs)
    guarded = both("where", both("lt", apply("abs", distance), 3), read(near, (apply("abs", distance),)), 0.0)
    evaluate(program(apply("add", SCORE, guarded), extra=(near,)), q, k, v, inputs)


def test_parameters() -> None:
    spec = program(apply("mul", SCORE, param("temperature", Kind.REAL)))
    q, k, v, _ = make.tensors(spec, AT)
    s = scores(q, k.repeat_interleave(2, 1))
    for given, value in (({}, 1.0), ({"temperature": 0.5}, 0.5), ({"temperature": torch.tensor(0.25)}, 0.25)):
        output = evaluate(spec, q, k, v, params=given)
        torch.testing.assert_close(output, (s * value).softmax(-1) @ v.repeat_interleave(2, 1))
    needy = Program("test", (), (Parameter("temperature", Kind.REAL, None),), (), spec.group, spec.body)
    with pytest.raises(ValueError, match="`temperature` is missing"):
        evaluate(needy, q, k, v)


def test_deep_programs_run() -> None:
    score = SCORE
    for _ in range(2000):
        score = both("add", score, 0.0)
    output, q, k, v, _ = run(specialize(program(score), 8, 6))
    torch.testing.assert_close(output, scores(q, k).softmax(-1) @ v)
