"""Keys given by number: Triton's gather kernels against the reference in the interpreter, and ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_triton_numerics import interpreter

pytest.importorskip("triton")
__all__ = ["interpreter"]
Ask = Callable[..., Any]
HEADS = ("", "G", "H")
SMALL = {"B": 1, "M": 5, "N": 23, "longest": 18}


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", ["softmax", "sigmoid", "alibi", "latent", "own groups", "two passes", "gate"])
def test_forward(interpreter: Ask, name: str, heads: str, seed: int) -> None:
    interpreter("listed", case=name, heads=heads, dtype="f32", seed=seed, sizes={"B": 1, "M": 9, "N": 37})


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_forward_in_half_precision(interpreter: Ask, dtype: str, seed: int) -> None:
    interpreter("listed", case="softmax", heads="", dtype=dtype, seed=seed, sizes={"B": 1, "M": 9, "N": 37})


@pytest.mark.parametrize("sizes", [{"N": 0}, {"M": 0}, {"longest": 0}, {"H": 40, "M": 3}, {"M": 1, "N": 1}])
def test_forward_at_borders(interpreter: Ask, sizes: dict[str, int], seed: int) -> None:
    interpreter("listed", case="softmax", heads="G", dtype="f32", seed=seed, sizes={"B": 1, "M": 9, **sizes})


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", ["softmax", "sigmoid", "latent", "key bias"])
def test_gradients(interpreter: Ask, name: str, heads: str, seed: int) -> None:
    interpreter("listed", case=name, heads=heads, dtype="f32", seed=seed, gradients=True, sizes=SMALL)


@pytest.mark.parametrize("name", ["causal", "softmax with a sink", "entropy", "rope", "gate"])
def test_gradients_of_a_shared_list(interpreter: Ask, name: str, seed: int) -> None:
    interpreter("listed", case=name, heads="", dtype="f32", seed=seed, gradients=True, sizes=SMALL)


@pytest.mark.parametrize("sizes", [{"N": 0}, {"M": 0}, {"longest": 0}, {"H": 40, "M": 2}])
def test_gradients_at_borders(interpreter: Ask, sizes: dict[str, int], seed: int) -> None:
    interpreter("listed", case="softmax", heads="G", dtype="f32", seed=seed, gradients=True, sizes={**SMALL, **sizes})


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", ["dsa:dsa", "dsa:hisa", "dynamic_mask"])
def test_routed_operators(interpreter: Ask, name: str, gradients: bool, seed: int) -> None:
    interpreter("routed", case=name, seed=seed, gradients=gradients)


CHOICES = ["indexer", "two stages", "bias", "scores", "heads", "keys of many", "none", "nothing", "everything"]


@pytest.mark.parametrize("name", CHOICES)
def test_choices(interpreter: Ask, name: str, seed: int) -> None:
    interpreter("choices", case=name, seed=seed)


@pytest.mark.parametrize("sizes", [(5, 1), (1, 70), (20, 9), (0, 5), (3, 0)])
def test_choices_at_borders(interpreter: Ask, sizes: tuple[int, int], seed: int) -> None:
    interpreter("choices", case="indexer", seed=seed, sizes=sizes)
