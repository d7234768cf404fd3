"""Training through the operator: derived gradients beside the reference's, and how torch can be used with them."""

from __future__ import annotations

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
from torch.utils.checkpoint import checkpoint

import attnc
from attnc import library
from attnc.cache import kernels
from attnc.ir.nodes import Kind
from attnc.signature import size_value

SIZES = {"B": 2, "H": 4, "G": 2, "M": 4, "N": 6, "D": 4, "E": 4}
SPECS = {
    "softmax": "",
    "causal": "mask causal",
    "sink": "input z: real[H]  normalize softmax_sink(score, z[h])",
    "sigmoid": "normalize sigmoid(score - log(N))",
    "relu2": "normalize relu2(score)",
    "cog": "normalize cog(score)",
    "affine": "input a: real[B, H, M]  param c: real = 0.3  normalize affine(score, a[b, h, row], c)",
    "inline": "normalize inline(score)",
    "slopes": "input slope: real[H]  mask causal  score softcap(dot(q, k) * scale + alibi(slope[h]), 5)",
    "table": "input t: real[H, 2 * N]  score dot(q, k) * scale + t[h, j - i + N]",
    "shared table": "input t: real[2 * N]  score dot(q, k) * scale + t[j - i + N]",
    "swin": (
        "space (y: Y, x: 3)  input t: real[2 * Y - 1, 5, H]  "
        "score dot(q, k) * scale + t[i.y - j.y + Y - 1, i.x - j.x + 2, h] "
    ),
    "gain": "input w: real[H, D]  query rmsnorm(q) * w[h, :]",
    "rope": "query rope(l2norm(q), i)  key rope(k, j)",
    "alias": "value k[0:3]",
    "gate": "input gate: real[B, H, M, E]  output sigmoid(gate[b, h, row, :]) * o",
    "one gate": "input gate: real[B, M, 3, H]  output o * gate[b, row, 1, h]",
    "key bias": "input u: real[B, G, N]  score dot(q, k) * scale + u[b, g, j]",
    "by position": "input u: real[N]  score dot(q, k) * scale * u[i] + u[j]",
    "by bucket": "input u: real[3, H]  score dot(q, k) * scale * u[row // 2, h] + u[j % 3, h]",
    "by word": "input word: int[B, N]  input u: real[3, D]  key k + u[word[b, j], :]",
    "far rows": "input u: real[M + 2, H]  score dot(q, k) * scale * u[row + 1, h]",
    "groups": "groups h % G  input u: real[G, N]  score dot(q, k) * scale + u[g, j]",
    "documents": "input word: int[B, N]  mask word[b, i] == word[b, j]",
    "empty rows": "mask j < i - 2",
    "two passes": "normalize relu(score - rowmean(score))",
}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeBackend]:
    with installed(monkeypatch, tmp_path / "cache") as fake:
        fake.refused = ()
        yield fake


def arguments(op: attnc.Op, dtype: torch.dtype = torch.float64, **other: int) -> dict[str, Any]:
    """q, k, v and the inputs of ``op``, each real one a leaf that requires its gradient."""
    s = SIZES | other | {"Y": other.get("N", SIZES["N"]) // 3}
    generator = torch.Generator().manual_seed(1)
    found: dict[str, Any] = {
        "q": torch.randn(s["B"], s["H"], s["M"], s["D"], generator=generator, dtype=dtype),
        "k": torch.randn(s["B"], s["G"], s["N"], s["D"], generator=generator, dtype=dtype),
        "v": torch.randn(s["B"], s["G"], s["N"], s["E"], generator=generator, dtype=dtype),
    }
    for source in op.program.inputs:
        dims = [size_value(dim, s) for dim in source.dims]
        found[source.name] = (
            torch.randn(dims, generator=generator, dtype=dtype)
            if source.kind is Kind.REAL
            else torch.randint(0, 3, dims, generator=generator)
        )
    return {name: x.requires_grad_() if x.is_floating_point() else x for name, x in found.items()}


def real(given: dict[str, Any]) -> dict[str, Tensor]:
    return {name: x for name, x in given.items() if x.requires_grad}


def compare(op: attnc.Op, given: dict[str, Any], **tolerance: float) -> None:
    """Gradients of everything real, for one cotangent, beside those of the reference."""
    out = op(**given)
    cotangent = torch.randn_like(out)
    leaves = list(real(given).values())
    found = torch.autograd.grad(out, leaves, cotangent)
    expected = torch.autograd.grad(op.reference(**given), leaves, cotangent, allow_unused=True, materialize_grads=True)
    for name, a, b in zip(real(given), found, expected, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, **(tolerance or {"rtol": 1e-7, "atol": 1e-8}), msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", SPECS)
def test_gradients_are_those_of_the_reference(backend: FakeBackend, name: str) -> None:
    op = attnc.loads(f"attention a {{ {SPECS[name]} }}")
    compare(op, arguments(op))
    (kernel,) = backend.backwards
    assert kernel.runs == 1


@pytest.mark.parametrize("name", ["softmax", "sink", "slopes", "gate", "table", "by bucket"])
def test_gradcheck(backend: FakeBackend, name: str) -> None:
    op = attnc.loads(f"attention a {{ {SPECS[name]} }}")
    given = arguments(op, B=1, H=2, G=1, M=3, N=4, D=2, E=2)
    assert gradcheck(lambda *leaves: op(**given | dict(zip(real(given), leaves, strict=True))), [*real(given).values()])
    assert len(backend.backwards) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sink", "sigmoid", "cog", "slopes", "swin", "gain", "gate"])
def test_kernels_for_cpus(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path))
    op = attnc.loads(f"attention a {{ {SPECS[name]} }}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", library.SlowGradientWarning)
        compare(op, arguments(op))
        given = arguments(op, B=1, H=2, G=1, M=3, N=3, D=4, E=4)
        leaves = [*real(given).values()]
        assert gradcheck(lambda *leaves: op(**given | dict(zip(real(given), leaves, strict=True))), leaves)


def test_the_log_sum_exp_has_a_gradient_too(backend: FakeBackend) -> None:
    op = attnc.loads(f"attention a {{ {SPECS['sink']} mask causal }}")
    given = arguments(op)
    leaves = list(real(given).values())
    (out, lse), (exact, exact_lse) = op(**given, return_lse=True), op.reference(**given, return_lse=True)
    a, c = torch.randn_like(out), torch.randn_like(lse)
    for of in ((True, True), (True, False), (False, True)):
        chosen = [pair for pair, used in zip(((out, a), (lse, c)), of, strict=True) if used]
        wanted = [pair for pair, used in zip(((exact, a), (exact_lse, c)), of, strict=True) if used]
        found, expected = (
            torch.autograd.grad([x for x, _ in pairs], leaves, [x for _, x in pairs], True, allow_unused=True)
            for pairs in (chosen, wanted)
        )
        for x, y, leaf in zip(found, expected, leaves, strict=True):
            assert_close(x, torch.zeros_like(leaf) if y is None else y, rtol=1e-7, atol=1e-8)
    assert len(backend.backwards) == 1


def test_only_the_gradients_asked_for_are_computed(backend: FakeBackend) -> None:
    op = attnc.loads(f"attention a {{ {SPECS['gate']} }}")
    for names in (("q",), ("v",), ("gate",), ("k", "gate"), ("q", "k", "v", "gate")):
        given = {
            name: x.detach().requires_grad_(name in names) if x.is_floating_point() else x
            for name, x in arguments(op).items()
        }
        compare(op, given)
        kernel = backend.backwards[-1]
        assert {part.name for part in kernel.backward.contributions} == set(names)
    assert [len(kernel.backward.steps) for kernel in backend.backwards] == [2, 2, 1, 3, 6]


def test_without_gradients_nothing_is_saved(backend: FakeBackend) -> None:
    op = attnc.loads("attention a {}")
    given = arguments(op)
    with torch.no_grad():
        op(**given)
    with torch.inference_mode():
        op(**given)
    assert [workload.saved for workload in backend.built] == [()]
    op(**given)
    assert set(backend.built[-1].saved) == {"m0", "l0"}


def test_kernels_of_gradients_are_kept_on_disk(backend: FakeBackend) -> None:
    text = f"attention a {{ {SPECS['slopes']} }}"
    compare(attnc.loads(text), arguments(attnc.loads(text)))
    built = len(backend.built), len(backend.backwards)
    kernels.clear()
    op = attnc.loads(text, backend="fake")
    compare(op, arguments(op))
    assert (len(backend.built), len(backend.backwards)) == built


def test_the_same_bits_twice(backend: FakeBackend) -> None:
    op = attnc.loads(f"attention a {{ {SPECS['by word']} }}")
    given = arguments(op, torch.float32, N=90)
    first, second = (torch.autograd.grad(op(**given).sin().sum(), real(given).values()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("sizes", [{"B": 0}, {"M": 0}, {"N": 0}, {"M": 1}, {"N": 1}, {"M": 9}], ids=str)
@pytest.mark.parametrize("name", ["causal", "key bias", "gate"])
def test_empty_and_tiny_sizes(backend: FakeBackend, name: str, sizes: dict[str, int]) -> None:
    op = attnc.loads(f"attention a {{ {SPECS[name]} }}")
    compare(op, arguments(op, **sizes))


def test_strided_expanded_and_repeated_arguments(backend: FakeBackend) -> None:
    op = attnc.loads(f"attention a {{ {SPECS['slopes']} }}")
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    slope = torch.randn((), dtype=torch.float64, requires_grad=True)

    def run(attend: Any) -> tuple[Tensor, ...]:
        t = x.transpose(1, 2)
        return torch.autograd.grad(attend(t, t, t, slope=slope.expand(4)).square().sum(), (x, slope))

    assert_close(run(op), run(op.reference), rtol=1e-7, atol=1e-8)


def test_half_precision_inputs(backend: FakeBackend) -> None:
    op = attnc.loads(f"attention a {{ {SPECS['gate']} }}")
    given = arguments(op, torch.bfloat16)
    wide = {name: x.detach().double().requires_grad_() for name, x in given.items()}
    found = torch.autograd.grad(op(**given).float().square().sum(), real(given).values())
    expected = torch.autograd.grad(op.reference(**wide).square().sum(), real(wide).values())
    for a, b in zip(found, expected, strict=True):
        assert a.dtype is torch.bfloat16
        assert_close(a.double(), b, rtol=3e-2, atol=3e-2)


def test_second_derivatives_come_from_the_reference(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_warned", set())
    op = attnc.loads(f"attention a {{ {SPECS['sink']} }}")
    given = arguments(op, B=1, H=2, G=1, M=2, N=3, D=2, E=2)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert gradgradcheck(
            lambda *leaves: op(**given | dict(zip(real(given), leaves, strict=True))), [*real(given).values()]
        )
    assert ["second derivatives" in str(w.message) for w in seen] == [True]


def test_what_has_no_derived_gradient_is_served_by_the_reference(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_warned", set())
    op = attnc.loads("attention peaked { normalize score / rowmax(abs(score)) }")
    with pytest.warns(library.SlowGradientWarning, match="row maximum otherwise than as the shift"):
        compare(op, arguments(op))
    assert not backend.backwards


def test_checkpointing(backend: FakeBackend) -> None:
    op = attnc.loads("attention a { mask causal }")
    given = arguments(op)
    q, k, v = real(given).values()
    expected = torch.autograd.grad(op.reference(q, k, v).sin().sum(), (q, k, v))
    found = torch.autograd.grad(checkpoint(op, q, k, v, use_reentrant=False).sin().sum(), (q, k, v))
    assert_close(found, expected, rtol=1e-7, atol=1e-8)
    checkpoint(op, q, k, v, use_reentrant=True).sin().sum().backward()
    assert_close((q.grad, k.grad, v.grad), expected, rtol=1e-7, atol=1e-8)


def test_functional_transforms_say_what_to_use(backend: FakeBackend) -> None:
    op = attnc.loads("attention a { mask causal }")
    q, k, v = (x.detach() for x in real(arguments(op)).values())
    with pytest.raises(attnc.ArgumentError, match=r"torch.func.*op.reference"):
        torch.func.grad(lambda q: op(q, k, v).sum())(q)
    with pytest.raises(attnc.ArgumentError, match=r"torch.func.*op.reference"):
        torch.func.vmap(lambda q: op(q, k, v))(torch.stack([q, q]))
    found = torch.func.grad(lambda q: op.reference(q, k, v).sum())(q)
    assert_close(found, torch.autograd.grad(op(q.requires_grad_(), k, v).sum(), q)[0])


@pytest.mark.slow
def test_opcheck(backend: FakeBackend) -> None:
    op = attnc.loads(f"attention a {{ {SPECS['slopes']} }}")
    values = tuple(arguments(op).values())
    torch.library.opcheck(op._operators.train, (*values, [True] * 4, True))
    out, *saved = op._operators.train(*values, [True] * 4, False)
    values = tuple(x.detach() for x in values)
    torch.library.opcheck(
        op._operators.gradient, ([torch.randn_like(out)], [x.detach() for x in (out, *saved)], *values, [True] * 4)
    )


@pytest.mark.slow
def test_a_compiled_training_step(backend: FakeBackend) -> None:
    op = attnc.loads(f"attention a {{ {SPECS['gate']} mask causal }}")

    def loss(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return op(q * 2, k, v, gate=gate).sin().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for n in (6, 8, 5):
        given = arguments(op, N=n, M=n)
        value, expected = compiled(**given), loss(**given)
        leaves = list(given.values())
        assert_close(value, expected)
        assert_close(torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves))
    assert len(backend.backwards) == 1
