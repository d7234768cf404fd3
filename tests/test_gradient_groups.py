"""Which gradients of keys are summed over the heads of a group inside a walk."""

from __future__ import annotations

import pytest
import triton_backward_cases

from attnc.analyse.gradient.backward import Backward, Walk
from attnc.analyse.gradient.groups import is_grouped
from attnc.backends.triton.recipe import parts_of_groups
from attnc.ir.printer import expression


def derived(text: str) -> Backward:
    return triton_backward_cases.derived(text, 32, 32)


def heads(backward: Backward) -> dict[str, str]:
    """What each gradient at keys has in place of the head, by argument."""
    return {part.name: expression(part.result.dims[1]) for part in backward.contributions if part.level == "key"}


def grouped(backward: Backward) -> list[bool]:
    return [is_grouped(step) for step in backward.steps if isinstance(step, Walk) and step.over == "rows"]


@pytest.mark.parametrize(
    "text",
    [
        "mask causal",
        "normalize sigmoid(score)",
        "key rope(rmsnorm(k), j) value l2norm(v)",
        "input u: real[B, G, N] score dot(q, k) * scale + u[b, g, j]",
        "input u: real[B, N] score dot(q, k) * scale + u[b, j]",
    ],
)
def test_heads_are_summed_where_all_of_a_key_is_a_sum_of_them(text: str) -> None:
    backward = derived(text)
    assert all(grouped(backward))
    assert set(heads(backward).values()) == {"G"}


@pytest.mark.parametrize(
    "text",
    [
        "input u: real[B, H, N] score dot(q, k) * scale + u[b, h, j]",  # has a gradient for each query head
        "input slope: real[H] score dot(q, k) * scale - slope[h] * (i - j)",  # of a head
        "input w: real[H, D] key k * w[h, :]",  # the gradient of k varies by query head otherwise than by the sum
        "groups h % G mask causal",
    ],
)
def test_heads_are_summed_afterwards_otherwise(text: str) -> None:
    backward = derived(text)
    assert not any(grouped(backward))
    assert set(heads(backward).values()) == {"H"}


def test_parts_are_the_fewest_that_keep_a_device_busy() -> None:
    assert parts_of_groups(64, 32, 8, 132) == 1
    assert parts_of_groups(16, 32, 8, 132) == 4
    assert parts_of_groups(32, 24, 8, 132) == 3
    assert parts_of_groups(1, 32, 1, 132) == 32
    assert parts_of_groups(100, 8, 8, 132) == 1
