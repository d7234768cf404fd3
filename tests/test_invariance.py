"""Which maxima may lag, and that moving them does not move results."""

from __future__ import annotations

import random

import pytest
import torch
import triton_cases
from plan_interpreter import run_plan

from attnc.analyse.invariance import free_maxima
from attnc.analyse.lower import lower_program_to_plan

SPECS = {
    "": {"m0"},
    "mask causal": {"m0"},
    "normalize softmax1(score)": {"m0"},
    "input z: real[H] normalize softmax_sink(score, z[h])": {"m0"},
    "normalize affine(score, 0.7, 0.01)": {"m0"},
    "normalize sigmoid_n(score)": set(),
    "output rmsnorm(o)": {"m0"},
    "output o * rowmax(score)": set(),
    "normalize exp(score - rowmax(score))": set(),
    "normalize softmax(score * rowmax(score))": {"m1"},
}


@pytest.mark.parametrize("spec", SPECS)
def test_free_maxima(spec: str) -> None:
    plan = lower_program_to_plan(triton_cases.specialized(spec, 32, 32))
    assert free_maxima(plan) == SPECS[spec]


@pytest.mark.parametrize("spec", [spec for spec in SPECS if SPECS[spec] and "z" not in spec])
def test_results_are_the_same_however_far_free_maxima_lag(spec: str, seed: int) -> None:
    plan = lower_program_to_plan(triton_cases.specialized(spec, 32, 32))
    sizes = {"B": 1, "H": 2, "G": 2, "M": 9, "N": 40, "D": 32, "E": 32}
    q, k, v = (torch.randn(1, 2, n, 32, dtype=torch.float64) * 2 for n in (9, 40, 40))
    exact = run_plan(plan, sizes, q, k, v, {}, {}, random.Random(seed))
    for slack in (1.0, 30.0):
        lagging = run_plan(plan, sizes, q, k, v, {}, {}, random.Random(seed), dict.fromkeys(free_maxima(plan), slack))
        for one, other in zip(exact, lagging, strict=True):
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_maximum_that_results_depend_on_must_not_lag(seed: int) -> None:
    """The test above can fail."""
    plan = lower_program_to_plan(triton_cases.specialized("output o * rowmax(score)", 32, 32))
    sizes = {"B": 1, "H": 2, "G": 2, "M": 9, "N": 40, "D": 32, "E": 32}
    q, k, v = (torch.randn(1, 2, n, 32, dtype=torch.float64) * 2 for n in (9, 40, 40))
    exact, _ = run_plan(plan, sizes, q, k, v, {}, {}, random.Random(7))
    lagging, _ = run_plan(plan, sizes, q, k, v, {}, {}, random.Random(7), {"m0": 30.0})
    assert not torch.allclose(exact, lagging)
