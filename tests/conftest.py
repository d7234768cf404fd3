"""Fixtures and ordering shared by all tests."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import TypedDict

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "attnc", deadline=None, derandomize=False, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("attnc")


class Tolerance(TypedDict):
    """Keywords of :func:`torch.testing.assert_close`."""

    rtol: float
    atol: float


_TOLERANCE: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (2e-5, 2e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}


def has_gpu() -> bool:
    """Whether a CUDA or HIP device can be used here."""
    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests last; tests of a GPU skipped without one."""
    if not has_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA or HIP device"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed, shown when the test fails; ``ATTNC_SEED`` repeats a run."""
    value = int(os.environ.get("ATTNC_SEED") or secrets.randbits(31))
    request.node.add_report_section("setup", "seed", f"ATTNC_SEED={value}")
    return value


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    """A CPU generator from :func:`seed`, for ``torch.randn(..., generator=generator)``."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def tolerance() -> Callable[[torch.dtype], Tolerance]:
    """``assert_close(a, b, **tolerance(dtype))``: the error of one attention computed in ``dtype``.

    Sums are in f32 (f64 for f64), so the error of the narrow types is one rounding of inputs, weights and output.
    """

    def of(dtype: torch.dtype) -> Tolerance:
        rtol, atol = _TOLERANCE[dtype]
        return {"rtol": rtol, "atol": atol}

    return of
