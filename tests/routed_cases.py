"""Routed operators of the specs whose queries choose single keys, run by Triton's kernels beside the reference."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from test_routing_specs import CASES, SPECS, Case, make

import attnc
from attnc.library import SlowGradientWarning

SMALL = {"B": 1, "M": 7, "N": 19, "H": 4, "G": 2}
BY_KEY = ("dsa:dsa", "dsa:hisa", "dynamic_mask")


def case_of(name: str) -> Case:
    found = next(case for case in CASES if case.name == name)
    return replace(found, sizes={**found.sizes, **SMALL})


def compare_gathered(name: str, seed: int, gradients: bool) -> None:
    """Output, and gradients if asked for, of kernels that gather, in float32."""
    case = case_of(name)
    made = make(case, torch.Generator().manual_seed(seed))
    stem, _, which = name.partition(":")
    op = attnc.load(SPECS / f"{stem}.attn", which or None, constants=case.constants, backend="triton")
    op.composite.gathers = True
    real = [*made.tokens, *(x for x in made.inputs.values() if x.is_floating_point())]
    names = [key for key, x in made.inputs.items() if x.is_floating_point()]
    wide = [x.clone().requires_grad_(gradients) for x in real]
    narrow = [x.float().requires_grad_(gradients) for x in real]

    def given(tensors: list[torch.Tensor]) -> dict[str, Any]:
        return {**made.arguments, **dict(zip(names, tensors[3:], strict=True))}

    expected = op.reference(*wide[:3], **given(wide))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowGradientWarning)
        found = op(*narrow[:3], **given(narrow))
    assert op.composite.used == {"": "gathered"}, op.composite.used
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    if not gradients:
        return
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
    grads = torch.autograd.grad(found, narrow, cotangent, allow_unused=True)
    due = torch.autograd.grad(expected, wide, cotangent.double(), allow_unused=True)
    for grad, right in zip(grads, due, strict=True):
        if right is None or not right.any():
            assert grad is None or not grad.any()
        else:
            assert grad is not None
            torch.testing.assert_close(grad, right.float(), rtol=1e-3, atol=1e-4)
