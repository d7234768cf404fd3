"""Kernels that choose blocks, and attention regrouped by what was chosen, in Triton's interpreter."""

from __future__ import annotations

import pytest
from block_routes import ROUTES
from test_triton_numerics import Ask, interpreter

__all__ = ["interpreter"]


@pytest.mark.parametrize("name", ROUTES)
def test_the_same_blocks_are_chosen(interpreter: Ask, name: str, seed: int) -> None:
    interpreter("choice", route=name, dtype="f32", seed=seed)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("name", ["moba", "taken anyhow", "gate"])
def test_in_half_precision(interpreter: Ask, name: str, dtype: str, seed: int) -> None:
    interpreter("choice", route=name, dtype=dtype, seed=seed)


@pytest.mark.parametrize("name", ["moba", "everything visible", "more taken than chosen", "candidates", "inputs"])
def test_operators(interpreter: Ask, name: str, seed: int) -> None:
    interpreter("block route", route=name, dtype="f32", seed=seed)


@pytest.mark.parametrize("name", ["more rows than keys", "one row", "gate"])
def test_operators_at_borders(interpreter: Ask, name: str, seed: int) -> None:
    interpreter("block route", route=name, dtype="f32", seed=seed)
