"""Masks whose data varies in steps of keys: how they are split, and that each part is what it says."""

from __future__ import annotations

import pytest

from attnc.analyse.mask.cells import cells_of
from attnc.check import check
from attnc.grammar import Source
from attnc.ir.nodes import Node
from attnc.ir.printer import expression

INPUTS = "input w: int[B, N] input u: int[B, M, N] input doc: int[B, N] "


def mask(text: str) -> Node:
    return check(
        Source("<test>", f"attention a {{ {INPUTS} mask {text} score w[b, 0] + u[b, 0, 0] + doc[b, 0] }}")
    ).body.mask


@pytest.mark.parametrize(
    ("text", "rest", "data", "step"),
    [
        ("causal and w[b, j // 16] > 0", "j <= i", "w[b, j // 16] > 0", 16),
        ("w[b, j // 16] >> (j // 8 % 4) & 1 == 1", "true", "w[b, j // 16] >> j // 8 % 4 & 1 == 1", 8),
        ("w[b, j // 12] > 0 and causal and u[b, row, j // 8] > 0", "j <= i", None, 4),
        ("w[b, j // 16 // 32] > 0", "true", "w[b, j // 16 // 32] > 0", 16),
        ("i % 2 == 0 and w[b, j // 16] > w[b, i]", "i % 2 == 0", "w[b, j // 16] > w[b, i]", 16),
        ("causal or w[b, j // 16] > 0", None, None, 0),
        ("w[b, j // 16] > j", None, None, 0),
        ("causal and doc[b, i] == doc[b, j]", None, None, 0),
        ("w[b, (j + 1) // 16] > 0", None, None, 0),
        ("w[b, j // 16] > 0 and doc[b, i] == doc[b, j]", None, None, 0),
        ("w[b, j // 1] > 0", None, None, 0),
        ("causal and w[b, i] > 0", None, None, 0),
        ("causal", None, None, 0),
    ],
)
def test_how_data_varies_along_the_keys(text: str, rest: str | None, data: str | None, step: int) -> None:
    found = cells_of(mask(text))
    if not step:
        assert found is None
        return
    assert found is not None
    assert found.step == step
    assert expression(found.rest) == rest
    if data is not None:
        assert expression(found.data) == data


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("causal and w[b, j // 16] > 0", 0),
        ("u[b, i // 64 - (i - row) // 64, j // 16] > 0", 64),
        ("u[b, i // 64 - (i - row) // 64, j // 16] > u[b, i // 48, 0]", 16),
        ("u[b, row, j // 16] > 0", 1),
        ("w[b, j // 16] > i", 1),
        ("w[b, j // 16] > 0 and norm2(q) > 1", 1),
    ],
)
def test_how_it_varies_along_the_rows(text: str, rows: int) -> None:
    found = cells_of(mask(text))
    assert found is not None
    assert found.rows == rows


def test_a_token_of_the_key_varies_with_it() -> None:
    assert cells_of(mask("w[b, j // 16] > 0 and norm2(k) > 1")) is None
