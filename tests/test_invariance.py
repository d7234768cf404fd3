"""Which maxima may lag, and that moving them does not move results."""

from __future__ import annotations

import pytest
import triton_cases

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
    print(plan)
    assert free_maxima(plan) == SPECS[spec]
