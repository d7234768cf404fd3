"""Products of bfloat16 two at a time, where the processor has them: odd numbers of keys, odd places, what is hidden."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("tvm")

from tvm_cases import Call, call

from attnc.backends.tvm.machine import flags

pytestmark = pytest.mark.skipif("avx512_bf16" not in flags(), reason="this processor multiplies no pairs of bfloat16")

MASKS = [
    "",
    "mask causal",
    "mask causal and i - j < 21",
    "mask j > 36 and causal",
    "mask abs(i - j) <= 3",
    "mask j % 3 == 1",
]


def error(made: Call, out: torch.Tensor) -> float:
    """The largest distance from the reference in float64, relative to the largest value, rows without keys left out."""
    expected, _ = made.expected()
    assert out.isfinite().all()
    return float((out.double() - expected).abs().max() / made.v.double().abs().max())


@pytest.mark.parametrize("spec", MASKS)
@pytest.mark.parametrize(("M", "N"), [(64, 64), (71, 71), (33, 130), (130, 97), (9, 1), (40, 2)])
def test_odd_numbers_of_keys(spec: str, M: int, N: int, seed: int) -> None:
    """Weights are rounded to 8 bits, each by at most half a unit: so are their sums, and the output once more."""
    made = call(spec, seed, dtype="bf16", M=M, N=N, D=34, E=17, lse=True)
    out, lse = made.run()
    assert error(made, out) <= 2**-8
    made.compare()
    assert lse is not None


def test_scores_are_those_of_float32(seed: int) -> None:
    """Pairs of bfloat16 have exact products: the log-sum-exp is not rounded to 8 bits."""
    made = call("mask causal score dot(q, k)", seed, dtype="bf16", M=96, N=96, D=64, lse=True)
    _, lse = made.run()
    _, expected = made.expected()
    torch.testing.assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]


def test_odd_places_in_memory(seed: int) -> None:
    """Rows that begin at odd elements, and an odd distance apart."""
    made = call("mask causal", seed, dtype="bf16", M=70, N=70, D=32, E=32)
    wide = [torch.randn(*x.shape[:3], 65).to(x.dtype) for x in (made.q, made.k, made.v)]
    for x, room in zip((made.q, made.k, made.v), wide, strict=True):
        room[..., 7:39] = x
    q, k, v = (room[..., 7:39] for room in wide)
    torch.testing.assert_close(replace(made, q=q, k=k, v=v).run()[0], made.run()[0], rtol=0, atol=0)


def test_slices(seed: int) -> None:
    """Halves of a vector, one of which begins at an odd element."""
    for low, high in ((0, 16), (16, 32), (1, 31)):
        spec = f"mask causal score dot(q[{low}:{high}], k[{low}:{high}]) * scale"
        call(spec, seed, dtype="bf16", M=70, N=70, D=32, E=32).compare()


def test_hidden_values_that_are_not_finite(seed: int) -> None:
    """Past the last key there is none to be paired with."""
    made = call("mask causal", seed, dtype="bf16", M=71, N=71, B=1, H=1, G=1)
    poisoned = torch.full((1, 1, 128, made.v.shape[3]), float("nan"), dtype=made.v.dtype)
    poisoned[:, :, :71] = made.v
    out, _ = replace(made, v=poisoned[:, :, :71]).run()
    torch.testing.assert_close(out, made.run()[0], rtol=0, atol=0)
