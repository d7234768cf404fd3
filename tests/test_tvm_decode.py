"""Few rows over many keys, as in decoding: keys are dealt to several tasks, whose states are merged."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tvm")

from tvm_cases import call

from attnc.templates.tvm.head import FEW, SHARE, key_parts_of

N = 2 * SHARE + 37
SPECS = {
    "softmax": "",
    "causal": "mask causal",
    "window": f"mask causal and i - j < {SHARE + 3}",
    "a part that sees nothing": "mask j < 5",
    "nothing": "mask j < 0",
    "softmax1": "normalize softmax1(score)",
    "sigmoid": "normalize sigmoid(score - log(N))",
    "cog": "normalize cog(score)",
    "bias": "input u: real[H, N] score dot(q, k) * scale + u[h, j]",
    "key norm": "score dot(q, k) * scale - 0.1 * dot(k, k)",
    "softcap": "score softcap(dot(q, k) * scale, 3)",
    "grouped": "input slope: real[H] score dot(q, k) * scale - slope[h] * (i - j) * 0.01",
}


def test_parts_depend_on_sizes_alone() -> None:
    assert key_parts_of(1, 1, SHARE) == 1
    assert key_parts_of(1, FEW, 8 * SHARE) == 8
    assert key_parts_of(8, 1, 100 * SHARE) == 4
    assert key_parts_of(1, FEW + 1, 100 * SHARE) == 1
    assert key_parts_of(1000, 1, 100 * SHARE) == 1


@pytest.mark.parametrize("M", [1, 3, FEW])
@pytest.mark.parametrize("name", list(SPECS))
def test_few_rows(name: str, M: int, seed: int) -> None:
    call(SPECS[name], seed, B=1, H=2, G=1, M=M, N=N).compare()


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f64"])
@pytest.mark.parametrize("M", [1, 2])
def test_types(dtype: str, M: int, seed: int) -> None:
    """One row converts keys as it reads them, more read a converted copy."""
    call("mask causal", seed, dtype=dtype, B=1, H=2, G=1, M=M, N=N, D=40, E=24).compare()


@pytest.mark.parametrize("spec", ["mask causal", "normalize softmax1(score)"])
def test_log_sum_exp(spec: str, seed: int) -> None:
    call(spec, seed, B=1, H=1, G=1, M=2, N=N, lse=True).compare()


def test_documents(seed: int) -> None:
    """A mask that only data can decide."""

    def documents(sizes: object, random: torch.Generator) -> torch.Tensor:
        return torch.randint(0, 3, (1, N), generator=random, dtype=torch.int32)

    spec = "input doc: int[B, N] mask doc[b, i] == doc[b, j]"
    call(spec, seed, made={"doc": documents}, B=1, H=2, G=2, M=4, N=N).compare()


def test_scores_that_grow_from_part_to_part(seed: int) -> None:
    """Sums are rescaled to the largest maximum, wherever it is."""
    for sign in (1, -1):
        made = call("", seed, B=1, H=1, G=1, M=2, N=N)
        ramp = torch.linspace(0, 60 * sign, N)
        made.k[0, 0] = ramp[:, None] * made.q[0, 0, 0] / made.q[0, 0, 0].square().sum() * 32**0.5
        made.compare()


def test_the_same_bits_on_any_number_of_threads(seed: int) -> None:
    made = call("mask causal", seed, B=1, H=1, G=1, M=1, N=4 * SHARE)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(made.run()[0])
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found[1:], [found[0], found[0]], rtol=0, atol=0)
