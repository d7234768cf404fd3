"""The walks of a backward by the kernels for Hopper, on one, beside autograd through the reference in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton_backward_cases
import triton_cases
from triton_backward_cases import Data, compare, find, make, results
from triton_cases import Case

from attnc.backends.protocol import BackwardKernel, Target, Workload
from attnc.backends.triton import call
from attnc.backends.triton.backend import device_backward
from attnc.backends.triton.compiling_backward import compile_with
from attnc.backends.triton.configs import SCATTER
from attnc.backends.triton.hopper.backward_configs import WalkConfig
from attnc.backends.triton.kernel import DeviceBackward
from attnc.targets import target_of_device

pytestmark = pytest.mark.gpu

TAKEN = (
    "softmax", "causal", "causal, more rows than keys", "window", "prefix", "documents", "neighbourhood", "empty rows",
    "no key", "mask by score", "softcap", "sigmoid", "alibi", "cog", "bias", "buckets", "row weights", "own groups",
    "normalised and rotated", "affine", "affine of empty rows", "cog of empty rows", "softcap of empty rows",
    "inline of empty rows", "mean of empty rows", "own keys", "key bias", "documents and a table",
)  # fmt: skip
FUSED = (
    "softmax", "causal", "causal, more rows than keys", "softcap", "mask by score", "normalised and rotated", "affine",
    "cog", "documents", "window", "empty rows", "affine of empty rows", "cog of empty rows",
)  # fmt: skip


def here() -> Target:
    target = target_of_device("cuda")
    if target.arch != "sm_90":
        pytest.skip("these kernels are for sm_90")
    return target


def larger(case: Case, D: int, E: int | None = None) -> Case:
    """The case at a size that no tile divides; grids stay as they are."""
    case = case.at(D=D, E=E or D)
    if case.extents:
        return case
    sizes = case.all_sizes
    return case.at(M=389 if sizes["M"] >= 53 else 277, N=389 if sizes["N"] >= sizes["M"] else 277)


def families(data: Data, unordered: bool = False) -> list[str]:
    backward, workload = triton_backward_cases.backward_of(data), triton_backward_cases.workload_of(data)
    made = triton_backward_cases.backward_kernel(backward, replace(workload, unordered=unordered), here())
    assert isinstance(made, DeviceBackward)
    return [launch.family for launch in made.recipe.launches if launch.family in ("stream", "hopper_backward")]


@pytest.fixture
def unordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backwards may add up in any order."""
    ordered = triton_backward_cases.backward_kernel

    def kernel(backward: object, workload: Workload, target: Target) -> BackwardKernel:
        return ordered(backward, replace(workload, unordered=True), target)  # type: ignore[arg-type]

    monkeypatch.setattr(triton_backward_cases, "backward_kernel", kernel)


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("name", TAKEN)
def test_gradients(name: str, D: int, seed: int) -> None:
    data = make(larger(find(name), D), "bf16", seed, "cuda")
    here()
    compare(data, here())


@pytest.mark.parametrize("name", ["causal", "documents", "softcap"])
def test_gradients_in_float16(name: str, seed: int) -> None:
    compare(make(larger(find(name), 64), "f16", seed, "cuda"), here())


@pytest.mark.parametrize("widths", [(16, 16), (40, 40), (96, 96), (192, 128), (256, 256)])
def test_head_widths(widths: tuple[int, int], seed: int) -> None:
    data = make(larger(find("causal"), *widths), "bf16", seed, "cuda")
    assert set(families(data)) == {"hopper_backward"}
    compare(data, here())


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.usefixtures("unordered")
def test_fused(name: str, seed: int) -> None:
    data = make(larger(find(name), 128), "bf16", seed, "cuda")
    assert families(data, unordered=True)[-1:] == ["hopper_backward"]
    compare(data, here())


@pytest.mark.parametrize("heads", [(8, 2), (6, 1), (12, 4)], ids=str)
@pytest.mark.parametrize("name", ["causal", "documents", "own keys"])
@pytest.mark.parametrize("fused", [False, True])
def test_groups(name: str, heads: tuple[int, int], fused: bool, request: pytest.FixtureRequest, seed: int) -> None:
    if fused:
        request.getfixturevalue("unordered")
    data = make(larger(find(name), 128).at(H=heads[0], G=heads[1]), "bf16", seed, "cuda")
    compare(data, here())


@pytest.mark.parametrize("processors", [0, 10**6], ids=["whole", "in parts"])
@pytest.mark.parametrize("fused", [False, True])
def test_groups_whole_and_in_parts(
    processors: int, fused: bool, request: pytest.FixtureRequest, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with so many keys that each program sums a whole group, and with so few that groups are parted."""
    if fused:
        request.getfixturevalue("unordered")
    monkeypatch.setattr(call, "processors_of", lambda _: processors)
    data = make(larger(find("causal"), 128).at(H=8, G=2), "bf16", seed, "cuda")
    compare(data, here())


SHAPES = [
    WalkConfig(64, 128, 4, 2, fused=fused, hide=hide) for fused in (False, True) for hide in (False, True)
]  # fmt: skip


@pytest.mark.parametrize("rows", SHAPES, ids=lambda c: f"{c.fused:d}{c.hide:d}")
@pytest.mark.parametrize("name", ["causal", "documents", "empty rows", "softcap"])
def test_every_shape(name: str, rows: WalkConfig, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is chosen by default."""
    data = make(larger(find(name), 128), "bf16", seed, "cuda")
    keys = replace(rows, block_m=128, fused=False)
    configs = {"keys": keys, "rows": rows, "pairs": SCATTER}
    backward, workload = triton_backward_cases.backward_of(data), triton_backward_cases.workload_of(data)
    made = device_backward(compile_with(backward, workload, here(), configs), here())
    monkeypatch.setattr(triton_backward_cases, "backward_kernel", lambda *_: made)
    compare(data, here())


@pytest.mark.parametrize("D", [64, 128])
def test_the_pair_gives_the_same_bits_twice(D: int, seed: int) -> None:
    data = make(triton_cases.find("causal").at(D=D, E=D, M=1500, N=1500), "bf16", seed, "cuda")
    assert families(data) == ["hopper_backward"] * 2
    d_out = triton_backward_cases.cotangent(data)
    for first, second in zip(*(results(data, d_out, here()) for _ in range(2)), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.usefixtures("unordered")
def test_strides(seed: int) -> None:
    data = make(larger(find("causal"), 64), "bf16", seed, "cuda")
    data.q = data.q.transpose(1, 2).contiguous().transpose(1, 2)
    data.k = torch.stack((data.k, data.k), -1).flatten(-2)[..., ::2]
    data.v = data.v[:, :, :1].expand_as(data.v)
    compare(data, here())
