"""Training through the operator on a GPU: every kind of read, determinism, torch.compile, memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_op_gradients import SPECS, arguments, real
from torch import Tensor
from torch.testing import assert_close

import attnc
from attnc.library import SlowGradientWarning

pytestmark = pytest.mark.gpu

SIZES = {"B": 2, "H": 4, "G": 2, "M": 70, "N": 90, "D": 32, "E": 32}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowGradientWarning)
        yield


def on_gpu(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: x.detach().to("cuda", dtype).requires_grad_() if x.is_floating_point() else x.cuda()
        for name, x in given.items()
    }


@pytest.mark.parametrize("name", SPECS)
def test_gradients_are_those_of_the_reference(name: str) -> None:
    op = attnc.loads(f"attention a {{ {SPECS[name].replace('u: real[3, H]', 'u: real[40, H]')} }}")
    given = arguments(op, **SIZES)
    ours = on_gpu(given, torch.float32)
    exact = op.reference(**given)
    cotangent = torch.randn_like(exact)
    leaves = [*real(given).values()]
    expected = torch.autograd.grad(exact, leaves, cotangent, allow_unused=True, materialize_grads=True)
    out = op(**ours)
    found, again = (
        torch.autograd.grad(out, real(ours).values(), cotangent.to(out), retain_graph=True) for _ in range(2)
    )
    for label, a, b, c in zip(real(given), found, again, expected, strict=True):
        assert torch.equal(a, b), label
        scale = c.abs().max().item()
        assert_close(a.double().cpu(), c, rtol=5e-3, atol=5e-3 * scale, msg=lambda m, label=label: f"{label}: {m}")


def test_a_compiled_training_step() -> None:
    op = attnc.loads(f"attention a {{ {SPECS['gate']} mask causal }}")

    def loss(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return op(q * 2, k, v, gate=gate).float().sin().sum()

    given = on_gpu(arguments(op, **SIZES), torch.bfloat16)
    leaves = list(given.values())
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(**given), leaves)
    assert_close(found, torch.autograd.grad(loss(**given), leaves), rtol=3e-2, atol=3e-2)


def test_memory_does_not_grow_with_pairs() -> None:
    op = attnc.loads("attention a { input slope: real[H] mask causal score dot(q, k) * scale + alibi(slope[h]) }")
    q, k, v = (torch.randn(1, 4, 8192, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in "qkv")
    slope = torch.rand(4, device="cuda", requires_grad=True)
    op(q, k, v, slope=slope).sum().backward()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    op(q, k, v, slope=slope).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 12 * q.numel() * q.element_size()
