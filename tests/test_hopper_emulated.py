"""Gradients by the kernels for Hopper, emulated on a CPU, against autograd through the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hopper_emulator import Program
from test_triton_numerics import interpreter

pytest.importorskip("triton")
__all__ = ["interpreter"]
Ask = Callable[..., Any]

SIZES = {"B": 1, "H": 4, "G": 2, "M": 150, "N": 190, "D": 64, "E": 64}
"""Two tiles of rows and of keys, neither of them whole."""


def config(block_m: int, block_n: int, **flags: bool) -> dict[str, int]:
    return {"block_m": block_m, "block_n": block_n, "warps": 4, "stages": 2, **flags}


PAIR = {"keys": config(128, 64), "rows": config(64, 128)}
HIDDEN = {"keys": config(128, 64, hide=True), "rows": config(64, 128, hide=True)}
EAGER = {"keys": config(128, 128, eager=True), "rows": config(128, 128, eager=True)}
APART = {"keys": config(128, 32, apart=True), "rows": config(32, 128, apart=True)}
FUSED = {"keys": config(128, 128), "rows": config(128, 128, fused=True)}
WIDE = {"keys": config(128, 128), "rows": config(64, 128, fused=True, hide=True)}


def needs_a_walk_of_its_own(case: str) -> bool:
    """Whether nothing that is saved tells rows that see nothing."""
    return case.startswith(("inline", "mean"))


def check(interpreter: Ask, case: str, configs: dict[str, Any], seed: int, dtype: str = "bf16", **sizes: int) -> None:
    families = interpreter("on hopper", case=case, seed=seed, sizes=SIZES | sizes, dtype=dtype, **configs)
    fused = configs["rows"].get("fused", False)
    assert families.count("hopper_backward") == (1 if fused else 3 if configs is APART else 2)
    assert "stream" not in families or needs_a_walk_of_its_own(case)


NAMES = ("causal", "documents", "softcap", "sigmoid", "window", "mask by score", "alibi", "cog", "affine")


@pytest.mark.parametrize("name", NAMES)
def test_fused(interpreter: Ask, name: str, seed: int) -> None:
    check(interpreter, name, FUSED, seed, M=190 if name == "documents" else 150)


def test_fused_wide(interpreter: Ask, seed: int) -> None:
    check(interpreter, "causal", WIDE, seed, D=128, E=128, B=2)


@pytest.mark.parametrize("configs", [FUSED, PAIR, HIDDEN], ids=["fused", "pair", "hidden"])
@pytest.mark.parametrize("name", ["empty rows", "causal, more rows than keys"])
def test_rows_that_see_nothing(interpreter: Ask, name: str, configs: dict[str, Any], seed: int) -> None:
    check(interpreter, name, configs, seed, M=230, N=140)


@pytest.mark.parametrize("name", ["affine", "cog", "softcap", "inline", "mean"])
def test_factors_that_are_infinite_in_rows_that_see_nothing(interpreter: Ask, name: str, seed: int) -> None:
    check(interpreter, f"{name} of empty rows", PAIR, seed, H=2, G=1, M=190, N=140)


@pytest.mark.parametrize("name", ["alibi", "cog", "row weights", "key bias"])
def test_pair(interpreter: Ask, name: str, seed: int) -> None:
    check(interpreter, name, HIDDEN, seed)


@pytest.mark.parametrize("configs", [EAGER, APART], ids=["eager", "apart"])
def test_shapes_of_walks(interpreter: Ask, configs: dict[str, Any], seed: int) -> None:
    check(interpreter, "causal", configs, seed, dtype="f16")


def test_keys_that_differ_by_query_head(interpreter: Ask, seed: int) -> None:
    check(interpreter, "own keys", PAIR, seed)


def test_own_groups(interpreter: Ask, seed: int) -> None:
    check(interpreter, "own groups", FUSED, seed, H=6, G=3)


@pytest.mark.parametrize(
    ("tiles", "heads", "batch", "span"), [(1, 1, 1, 1), (5, 3, 2, 1), (5, 3, 2, 4), (4, 2, 3, 100), (7, 5, 1, 5)]
)
def test_every_tile_is_taken_once_and_long_ones_first(tiles: int, heads: int, batch: int, span: int) -> None:
    order = Program(0, 1).load_module("attnc.templates.triton.order")
    count = heads * batch
    numbers = torch.arange(tiles * count, dtype=torch.int32)
    taken = [tuple(int(x) for x in order.place(n, tiles, heads, torch.tensor(count), span)) for n in numbers]
    assert sorted(taken) == sorted((t, h, b) for t in range(tiles) for h in range(heads) for b in range(batch))
    for first in range(0, count, span):
        of_span = [t for t, h, b in taken if first <= b * heads + h < first + span]
        assert of_span == sorted(of_span)
