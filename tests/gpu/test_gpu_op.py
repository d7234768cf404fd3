"""The operator on a GPU: the whole way from text to result, gradients, torch.compile, graphs, bundles."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import attnc
from attnc.jit import build_count
from attnc.library import SlowGradientWarning

pytestmark = pytest.mark.gpu

TEXT = """
attention biased {
    input slope: real[H]
    input doc: int[B, N]
    mask  causal and doc[b, j] == doc[b, i]
    score softcap(dot(q, k) * scale + slope[h] * (j - i), 30)
}
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ATTNC_CACHE_DIR", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowGradientWarning)
        yield


def arguments(n: int = 200, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    q = torch.randn(2, 8, n, 64, device="cuda", dtype=dtype)
    k, v = (torch.randn(2, 2, n, 64, device="cuda", dtype=dtype) for _ in "kv")
    doc = torch.arange(n, device="cuda").expand(2, n) // 70
    return {"q": q, "k": k, "v": v, "slope": torch.rand(8, device="cuda"), "doc": doc}


def test_results_gradients_and_no_new_kernels() -> None:
    op = attnc.loads(TEXT)
    op(**arguments(), return_lse=True)
    built = build_count()
    for n in (200, 1, 333):
        given = arguments(n)
        for name in ("q", "k", "v", "slope"):
            given[name].requires_grad_()
        out, lse = op(**given, return_lse=True)
        wide = {name: x.detach().double().requires_grad_() if x.is_floating_point() else x for name, x in given.items()}
        exact, exact_lse = op.reference(**wide, return_lse=True)
        assert_close(out.double(), exact, rtol=2e-2, atol=2e-2)
        assert_close(lse.double(), exact_lse, rtol=1e-2, atol=1e-2)
        found = torch.autograd.grad(out.float().sum(), [given[name] for name in ("q", "k", "v", "slope")])
        expected = torch.autograd.grad(exact.sum(), [wide[name] for name in ("q", "k", "v", "slope")])
        for a, b in zip(found, expected, strict=True):
            assert_close(a.double(), b, rtol=3e-2, atol=3e-2 * max(1.0, b.abs().max().item()))
    assert build_count() == built + 2  # the forward that saves states, and the backward


def test_compile_and_graph() -> None:
    op = attnc.loads(TEXT)
    given = arguments()
    expected = op(**given)
    assert_close(torch.compile(lambda **x: op(**x) * 2, fullgraph=True)(**given), expected * 2, rtol=2e-2, atol=2e-2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(**given)
    given["q"].neg_()
    graph.replay()
    assert_close(out, op(**given))


def test_devices_do_not_mix() -> None:
    given = arguments()
    with pytest.raises(attnc.ArgumentError, match="`slope` is on cpu, q is on cuda:0"):
        attnc.loads(TEXT)(**given | {"slope": given["slope"].cpu()})


def test_a_bundle_runs_without_compiling(tmp_path: Path) -> None:
    spec = tmp_path / "biased.attn"
    spec.write_text(TEXT)
    attnc.compile(spec, "cuda", tmp_path / "out", head_dims=[64], dtypes=["bf16"])
    given = arguments()
    torch.save((given, attnc.loads(TEXT)(**given)), tmp_path / "case.pt")
    program = """
import sys, triton, triton.compiler
triton.compile = triton.compiler.compile = None
import torch, attnc
given, expected = torch.load(sys.argv[1] + "/case.pt")
torch.testing.assert_close(attnc.load(sys.argv[1] + "/out")(**given), expected)
assert not {"tvm", "lark"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
