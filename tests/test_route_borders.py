"""Bad input of routes, on both backends: ranks and numbers that mean nothing, too many, too few, none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import route_borders
from test_triton_numerics import interpreter

__all__ = ["interpreter"]
Ask = Callable[..., Any]
each = pytest.mark.parametrize("name", list(route_borders.BORDERS))


@each
def test_on_a_cpu(name: str, seed: int) -> None:
    pytest.importorskip("tvm")
    route_borders.compare(name, seed, None)


@each
def test_by_tritons_kernels(interpreter: Ask, name: str, seed: int) -> None:
    pytest.importorskip("triton")
    interpreter("borders", case=name, seed=seed)


def test_one_key(interpreter: Ask, seed: int) -> None:
    interpreter("borders", case="more than there are", seed=seed, sizes=(4, 1))
