"""Gradients of CPU kernels against autograd through the reference in float64."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

from tvm_backward_cases import training

SPECS = {
    "softmax": "",
    "causal": "mask causal",
    "softmax1": "mask causal normalize softmax1(score)",
    "sink": "input z: real[H] mask causal normalize softmax_sink(score, z[h])",
    "sigmoid": "mask causal normalize sigmoid(score - log(N))",
    "relu": "normalize relu(score)",
    "relu2": "mask causal normalize relu2(score)",
    "silu": "mask causal score silu(dot(q, k) * scale)",
    "cog": "mask causal normalize cog(score)",
    "affine": "input a: real[B, H, M] param c: real = 0.3 normalize affine(score, a[b, h, row], c)",
    "inline": "normalize inline(score)",
    "softcap": "mask causal score softcap(dot(q, k) * scale, 2)",
    "alibi": "input slope: real[H] mask causal score dot(q, k) * scale + alibi(slope[h])",
    "bucket": "input t: real[H, 8] score dot(q, k) * scale + t[h, floor(log(1 + abs(i - j)))]",
    "window table": (
        "space (y: Y, x: X) input t: real[(2 * Y - 1) * (2 * X - 1), H] "
        "score dot(q, k) * scale + t[(i.y - j.y + Y - 1) * (2 * X - 1) + i.x - j.x + X - 1, h]"
    ),
    "bias": "input t: real[B, H, M, N] mask causal score dot(q, k) * scale + t[b, h, row, j]",
    "tapa": (
        "param alpha: real = 0.2 score dot(q[0:D // 2], k[0:D // 2]) * scale "
        "* cos(6.283 * abs(i - j) ** alpha * dot(q[D // 2:D], k[D // 2:D]))"
    ),
    "norms": "mask causal query rope(rmsnorm(q), i) key rope(l2norm(k), j)",
    "gain": "input w: real[H, D] mask i - j < 20 and causal query rmsnorm(q) * w[h, :]",
    "alias": "mask causal value k[0:8]",
    "gate": "input gate: real[B, H, M, E] mask causal output sigmoid(gate[b, h, row, :]) * o",
    "decay": "input mu: real[H] normalize softmax(score) * exp(-abs(i - j) * mu[h] * mu[h])",
    "documents": "input doc: int[B, N] mask doc[b, i] == doc[b, j] and causal",
    "neighbourhood": "mask neighborhood(3)",
    "empty rows": "mask j < i - 37",
    "empty rows, epilogue": "input w: real[B, H, M, E] mask j < i - 37 output o * w[b, h, row, :]",
    "empty rows, norm": "mask j < i - 37 output rmsnorm(o)",
    "twopass": "mask causal normalize relu(score - rowmean(score))",
    "temperature": "input tau: real[B, H, M] mask causal score dot(q, k) * scale * tau[b, h, row]",
    "key bias": "input u: real[B, G, N] score dot(q, k) * scale + u[b, g, j]",
    "entropy": "output o * rowsum(weight * score)",
}
PARAMS = {"affine": (0.3,), "tapa": (0.2,)}
SHAPES = {"neighbourhood": {"M": 71}, "window table": {"M": 48, "N": 48}}
EXTENTS = {"window table": (6, 8)}


@pytest.mark.parametrize("name", SPECS)
def test_gradients_in_float64(name: str, seed: int) -> None:
    made = training(
        SPECS[name], seed, params=PARAMS.get(name, ()), extents=EXTENTS.get(name, ()), **SHAPES.get(name, {})
    )
    made.compare()
