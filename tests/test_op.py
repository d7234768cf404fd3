"""The operator over a backend that runs the reference: registration, gradients, compilation counts, odd sizes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_backend import FakeBackend, installed
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import attnc
from attnc import library
from attnc.jit import build_count

BIASED = """
attention biased {
    input slope: real[H]
    input doc: int[B, N]
    const W = 4
    param temperature: real = 1.0
    mask  abs(i - j) < W and doc[b, j] == doc[b, max(i, 0)]
    score dot(q, k) * scale * temperature + slope[h] * (j - i)
}
"""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    with installed(monkeypatch, tmp_path / "cache") as fake:
        yield fake


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", library.SlowGradientWarning)
        yield


def qkv(
    b: int = 2, h: int = 4, g: int = 2, m: int = 5, n: int = 7, d: int = 4, e: int = 6, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    options = {"dtype": torch.float64} | options
    return torch.randn(b, h, m, d, **options), torch.randn(b, g, n, d, **options), torch.randn(b, g, n, e, **options)


def biased_arguments(b: int = 2, h: int = 4, n: int = 7, **options: Any) -> dict[str, Tensor]:
    slope = torch.randn(h, **({"dtype": torch.float64} | options))
    return {"slope": slope, "doc": torch.randint(0, 2, (b, n))}


def test_runs_a_kernel_and_equals_the_reference(backend: FakeBackend) -> None:
    op = attnc.loads(BIASED)
    q, k, v = qkv()
    given = biased_arguments()
    assert_close(op(q, k, v, temperature=0.5, **given), op.reference(q, k, v, temperature=0.5, **given))
    assert len(backend.built) == 1


def test_full_attention_is_sdpa(backend: FakeBackend) -> None:
    q, k, v = qkv()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert_close(attnc.loads("attention full {}")(q, k, v), expected)


def test_new_sizes_and_numbers_compile_nothing_and_new_types_do(backend: FakeBackend) -> None:
    op = attnc.loads(BIASED)
    for b, m, n, temperature in ((2, 5, 7, 1.0), (1, 9, 3, 2.0), (3, 1, 1, 0.5), (2, 64, 70, 1.0)):
        op(*qkv(b=b, m=m, n=n), temperature=temperature, **biased_arguments(b=b, n=n))
    assert len(backend.built) == 1
    op(*qkv(h=8, g=1), **biased_arguments(h=8))
    assert len(backend.built) == 1
    op(*qkv(d=8), **biased_arguments())
    op(*qkv(dtype=torch.float32), **biased_arguments(dtype=torch.float32))
    op(*qkv(), **{**biased_arguments(), "doc": torch.zeros(2, 7, dtype=torch.int32)})
    op(*qkv(), **biased_arguments(), return_lse=True)
    assert len(backend.built) == 5


def test_a_second_process_loads_from_disk(backend: FakeBackend) -> None:
    from attnc.cache import kernels

    before = build_count()
    attnc.loads(BIASED)(*qkv(), **biased_arguments())
    kernels.clear()
    attnc.loads(BIASED, W=4, backend="fake")(*qkv(), **biased_arguments())
    assert (len(backend.built), backend.loaded, build_count() - before) == (1, 1, 1)


def test_constants_are_part_of_the_kernel(backend: FakeBackend) -> None:
    q, k, v = qkv()
    given = biased_arguments()
    narrow, wide = attnc.loads(BIASED, W=1), attnc.loads(BIASED, constants={"W": 9})
    assert not torch.equal(narrow(q, k, v, **given), wide(q, k, v, **given))
    assert len(backend.built) == 2


@pytest.mark.parametrize("sizes", [{"b": 0}, {"m": 0}, {"n": 0}, {"n": 1}, {"m": 1}, {"m": 9, "n": 2}], ids=str)
def test_empty_and_tiny_sizes_are_defined_and_finite(backend: FakeBackend, sizes: dict[str, int]) -> None:
    op = attnc.loads("attention local { mask causal and i - j < 3 }")
    q, k, v = qkv(**sizes)
    out, lse = op(q, k, v, return_lse=True)
    assert out.shape == (*q.shape[:3], v.shape[3])
    assert out.isfinite().all()
    assert not lse.isnan().any()
    if "n" in sizes and sizes["n"] == 0:
        assert_close(out, torch.zeros_like(out))
        assert (lse == float("-inf")).all()


def test_rows_that_see_nothing_are_zero_with_zero_gradient(backend: FakeBackend) -> None:
    op = attnc.loads("attention late { mask j > i }")
    q, k, v = (x.requires_grad_() for x in qkv(m=4, n=4))
    out = op(q, k, v)
    assert_close(out[:, :, -1], torch.zeros_like(out[:, :, -1]))
    out.sum().backward()
    assert q.grad is not None
    assert_close(q.grad[:, :, -1], torch.zeros_like(q.grad[:, :, -1]))


def test_gradients_of_tokens_and_real_inputs(backend: FakeBackend) -> None:
    op = attnc.loads(BIASED)
    q, k, v = (x.requires_grad_() for x in qkv(b=1, h=2, g=1, m=3, n=4, d=2, e=2))
    given = biased_arguments(b=1, h=2, n=4)

    def run(q: Tensor, k: Tensor, v: Tensor, slope: Tensor) -> Tensor:
        return op(q, k, v, slope=slope, doc=given["doc"], temperature=0.7)

    assert gradcheck(run, (q, k, v, given["slope"].requires_grad_()))
    assert gradgradcheck(run, (q, k, v, given["slope"]))


def test_gradient_of_the_log_sum_exp(backend: FakeBackend) -> None:
    op = attnc.loads("attention causal { mask causal }")
    q, k, v = (x.requires_grad_() for x in qkv(b=1, h=2, g=2, m=3, n=3, d=2, e=2))
    out, lse = op(q, k, v, return_lse=True)
    expected = op.reference(q, k, v, return_lse=True)
    weight = torch.randn_like(lse)
    found = torch.autograd.grad((lse * weight).sum() + out.sum(), (q, k, v))
    assert_close(
        found, torch.autograd.grad((expected[1] * weight).sum() + expected[0].sum(), (q, k, v)), rtol=1e-6, atol=1e-6
    )


def test_one_tensor_used_twice(backend: FakeBackend) -> None:
    op = attnc.loads("attention full {}")
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: op(x, x, x), (x,))


def test_half_precision_gradients_are_rounded_once(backend: FakeBackend) -> None:
    op = attnc.loads("attention causal { mask causal }")
    q, k, v = (x.requires_grad_() for x in qkv(g=4, m=7, dtype=torch.bfloat16))
    out = op(q, k, v)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), cotangent)
    wide_q, wide_k, wide_v, d_out = (x.detach().float() for x in (q, k, v, cotangent))
    scale = q.shape[-1] ** -0.5
    scores = (wide_q @ wide_k.mT * scale).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    weights = scores.softmax(-1)
    rows = (d_out * out.detach().float()).sum(-1, keepdim=True)  # of the output as it was rounded
    terms = weights * (d_out @ wide_v.mT - rows) * scale
    for a, b in zip(found, (terms @ wide_k, terms.mT @ wide_q, weights.mT @ d_out), strict=True):
        assert a.dtype is torch.bfloat16
        assert_close(a.float(), b, rtol=2**-8, atol=1e-5)  # half a unit in the last place


def test_the_slow_gradient_is_announced_once(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_warned", set())
    op = attnc.loads("attention peaked {\n    normalize score / rowmax(abs(score))\n}")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            op(*(x.requires_grad_() for x in qkv())).sum().backward()
    assert [w.category for w in seen] == [library.SlowGradientWarning]
    assert "`peaked`" in str(seen[0].message)
    assert "<string>:2:30: the result depends on a row maximum" in str(seen[0].message)


@pytest.mark.slow
def test_opcheck(backend: FakeBackend) -> None:
    op = attnc.loads(BIASED)
    q, k, v = (x.requires_grad_() for x in qkv())
    given = biased_arguments()
    values = (q, k, v, given["slope"].requires_grad_(), given["doc"], 0.5)
    torch.library.opcheck(op._operators.forward, values)
    torch.library.opcheck(op._operators.forward_lse, values)


@pytest.mark.slow
def test_compile_fullgraph_and_dynamic_sizes(backend: FakeBackend) -> None:
    op = attnc.loads(BIASED)

    def layer(q: Tensor, k: Tensor, v: Tensor, slope: Tensor, doc: Tensor) -> Tensor:
        return op(q * 2, k, v, slope=slope, doc=doc).relu()

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (7, 12, 5):
        q, k, v = (x.requires_grad_() for x in qkv(n=n))
        given = biased_arguments(n=n)
        out = compiled(q, k, v, **given)
        expected = layer(q, k, v, **given)
        assert_close(out, expected)
        assert_close(torch.autograd.grad(out.sum(), (q, k, v)), torch.autograd.grad(expected.sum(), (q, k, v)))
    assert_close(torch.compile(op, fullgraph=True, backend="eager")(q, k, v, **given), op(q, k, v, **given))


@pytest.mark.slow
def test_export(backend: FakeBackend) -> None:
    op = attnc.loads(BIASED)

    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, slope: Tensor, doc: Tensor) -> Tensor:
            return op(q, k, v, slope=slope, doc=doc)

    arguments = (*qkv(), *biased_arguments().values())
    exported = torch.export.export(Layer(), arguments)
    assert any(".biased" in str(node.target) for node in exported.graph.nodes)
    assert_close(exported.module()(*arguments), Layer()(*arguments))


def test_no_log_sum_exp_where_there_is_no_denominator(backend: FakeBackend) -> None:
    op = attnc.loads("attention relus { normalize relu(score) }")
    with pytest.raises(attnc.ArgumentError, match="`relus` has no log-sum-exp"):
        op(*qkv(), return_lse=True)


def test_what_a_backend_cannot_do_is_located(backend: FakeBackend) -> None:
    op = attnc.loads("attention capped {\n    score softcap(dot(q, k) * scale, 50)\n}")
    with pytest.raises(attnc.UnsupportedError) as caught:
        op(*qkv())
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.hint == "use something else"
    assert "there is no `tanh`" in diagnostic.message
    assert diagnostic.span.line == 2


def test_two_specs_that_swap_their_inputs_do_not_mix(backend: FakeBackend) -> None:
    text = "attention swap { input a: real[H] input c: real[H] score dot(q, k) * %s[h] + %s[h] * j }"
    q, k, v = qkv()
    given = {"a": torch.rand(4, dtype=torch.float64), "c": torch.rand(4, dtype=torch.float64)}
    for names in (("a", "c"), ("c", "a")):
        op = attnc.loads(text % names)
        assert_close(op(q, k, v, **given), op.reference(q, k, v, **given))


def test_copies_are_the_same_operator(backend: FakeBackend) -> None:
    op = attnc.loads("attention full {}")
    assert copy.deepcopy({"op": op})["op"] is op
    assert "full(q, k, v)" in repr(op)


def test_cost_counts_visible_pairs(backend: FakeBackend) -> None:
    op = attnc.loads("attention causal { mask causal }")
    cost = op.cost(2, 100, 100, H=4, D=8)
    assert cost.pairs == 2 * 4 * 100 * 101 // 2
    assert cost.flops == cost.pairs * 2 * (8 + 8)
    assert cost.exact
    assert not attnc.loads(BIASED).cost(1, 8, 8).exact
