"""Gradients by Triton's kernels against autograd through the reference: in the interpreter, and ahead of time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import triton_backward_cases
from test_triton_compile import INSTRUCTION, SM80, SM90
from test_triton_numerics import interpreter
from triton_cases import make

from attnc.backends.protocol import Target
from attnc.backends.triton import TritonBackend
from attnc.backends.triton.configs import SHARED_MEMORY
from attnc.backends.triton.kernel import DeviceBackward, DeviceKernel
from attnc.backends.triton.report import fault_in

pytest.importorskip("triton")
__all__ = ["interpreter"]
Ask = Callable[..., Any]

SMALL = {"B": 1, "H": 2, "G": 1, "M": 33, "N": 41}
NAMES = (
    "softmax", "causal, more rows than keys", "softmax with a sink", "sigmoid", "cog", "row weights", "inline",
    "softcap", "alibi", "buckets", "relative table", "grid table", "tapa", "normalised and rotated", "latent", "gate",
    "gated rows", "decay", "documents", "neighbourhood", "empty rows", "one key", "key bias", "entropy",
    "key bias of all heads", "two passes over a mask", "gain", "mask by token", "words", "own groups",
    "output of lanes", "documents and a table", "chosen blocks", "blocks chosen together",
    "lists", "lists, causal",
)  # fmt: skip
OWN_SIZES = {"neighbourhood", "one key", "grid table", "documents", "words", "relative table", "gated rows",
             "causal, more rows than keys", "own groups",
             "output of lanes", "documents and a table", "chosen blocks", "blocks chosen together",
             "lists", "lists, causal"}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_float32(interpreter: Ask, name: str, seed: int) -> None:
    heads = {} if name == "own groups" else {"H": 2, "G": 1}
    sizes = {"B": 1, **heads} if name in OWN_SIZES else SMALL
    interpreter("gradients", case=name, dtype="f32", seed=seed, sizes=sizes)


@pytest.mark.parametrize("heads", [(6, 2), (4, 1), (3, 3)], ids=str)
@pytest.mark.parametrize("name", ["causal", "documents", "normalised and rotated", "key bias", "gate"])
def test_heads_of_a_group_are_summed_inside_a_walk(
    interpreter: Ask, name: str, heads: tuple[int, int], seed: int
) -> None:
    H, G = heads
    sizes = SMALL | {"H": H, "G": G}
    shapes = interpreter("gradients", case=name, dtype="f32", seed=seed, sizes=sizes, processors=0)
    assert len(shapes) >= 2
    assert {shape[1] for shape in shapes} == {G}


@pytest.mark.parametrize(("processors", "heads"), [(1, 2), (2, 4), (4, 6), (1000, 12)])
def test_few_keys_are_shared_out_by_parts_of_groups(interpreter: Ask, processors: int, heads: int, seed: int) -> None:
    """Two tiles of keys and two key heads: 4 programs where each sums its whole group."""
    sizes = SMALL | {"H": 12, "G": 2}
    shapes = interpreter("gradients", case="causal", dtype="f32", seed=seed, sizes=sizes, processors=processors)
    assert {shape[1] for shape in shapes} == {heads}


@pytest.mark.parametrize("name", ["own groups", "alibi"])
def test_groups_of_its_own_are_summed_afterwards(interpreter: Ask, name: str, seed: int) -> None:
    """Or sums of a number for each query head, which the same walk makes: of a learned slope."""
    assert interpreter("gradients", case=name, dtype="f32", seed=seed, sizes={}, processors=0) == []


@pytest.mark.parametrize(("name", "dtype"), [("causal", "bf16"), ("causal", "f16"), ("normalised and rotated", "bf16")])
def test_gradients_in_half_precision(interpreter: Ask, name: str, dtype: str, seed: int) -> None:
    interpreter("gradients", case=name, dtype=dtype, seed=seed, sizes=SMALL)


@pytest.mark.parametrize("widths", [(40, 40), (17, 5), (96, 72)], ids=str)
def test_head_widths(interpreter: Ask, widths: tuple[int, int], seed: int) -> None:
    sizes = SMALL | {"D": widths[0], "E": widths[1]}
    interpreter("gradients", case="causal", dtype="f32", seed=seed, sizes=sizes)


@pytest.mark.parametrize("empty", ["B", "M", "N"])
def test_nothing_there(interpreter: Ask, empty: str, seed: int) -> None:
    interpreter("gradients", case="causal", dtype="f32", seed=seed, sizes={empty: 0})


def test_strides(interpreter: Ask, seed: int) -> None:
    interpreter("gradient strides", case="causal", seed=seed, sizes=SMALL)


def test_the_same_bits_twice(interpreter: Ask, seed: int) -> None:
    interpreter("gradient bits", case="buckets", seed=seed, sizes=SMALL)


def compiled(name: str, target: Target, dtype: str, width: int) -> tuple[DeviceKernel, DeviceBackward]:
    data = make(triton_backward_cases.find(name).at(D=width, E=width, M=1, N=1), dtype, 0)
    forward, backward = triton_backward_cases.kernels(data, target)
    assert isinstance(forward, DeviceKernel)
    assert isinstance(backward, DeviceBackward)
    return forward, backward


@pytest.mark.slow
@pytest.mark.parametrize("target", [SM80, SM90], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize(("name", "width"), [("causal", 64), ("causal", 128), ("buckets", 64)])
def test_what_the_compilers_report(name: str, width: int, target: Target) -> None:
    _, made = compiled(name, target, "bf16", width)
    for launch in made.recipe.launches:
        report = made.report()[launch.name]
        assert fault_in(report, launch.family, SHARED_MEMORY[target.arch]) is None, launch.name
        if launch.family in ("stream", "scatter", "hopper_backward"):
            assert any(kind.startswith(INSTRUCTION[target]) for kind in report.kinds)


@pytest.mark.slow
def test_walks_of_two_families_share_slots() -> None:
    """Keys are summed by a kernel for Hopper; the sums over the rows exceed float16 and numbers besides, so are not."""
    data = make(triton_backward_cases.find("normalised and rotated").at(M=1, N=1), "f16", 0)
    _, made = triton_backward_cases.kernels(data, SM90)
    assert isinstance(made, DeviceBackward)
    assert {"stream", "hopper_backward"} <= {launch.family for launch in made.recipe.launches}


@pytest.mark.slow
def test_softmax_needs_two_walks_and_one_number_a_row_twice(tmp_path: Path) -> None:
    _, made = compiled("causal", SM90, "bf16", 64)
    families = [launch.family for launch in made.recipe.launches]
    assert families == ["token", "token", "hopper_backward", "hopper_backward"]
    manifest = json.loads(json.dumps(dict(made.save(tmp_path))))
    loaded = TritonBackend().load_backward(tmp_path, manifest)
    assert isinstance(loaded, DeviceBackward)
    assert [one.code for one in loaded.programs] == [one.code for one in made.programs]
    assert loaded.recipe.results == made.recipe.results
