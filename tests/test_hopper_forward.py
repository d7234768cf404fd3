"""The forward for Hopper without a GPU: who gets it, what the compilers say of it, its descriptors and layouts."""

from __future__ import annotations

import ctypes
from functools import cache

import pytest
import torch
import triton_cases

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.call import _laid_out
from attnc.backends.triton.choice import compile_for_hopper, fault_of, hopper_configs, outlook, why_not_hopper
from attnc.backends.triton.compiling import Compiled, compile_with
from attnc.backends.triton.configs import SHARED_MEMORY
from attnc.backends.triton.descriptors import Descriptors
from attnc.backends.triton.hopper.configs import HopperConfig
from attnc.backends.triton.recipe import Box, Layout, from_json, leaves, to_json
from attnc.backends.triton.space import space_of
from attnc.plan import Plan

SM90 = Target("cuda", "sm_90")
SOFTMAX = Workload("bf16", (), False)


@cache
def plan_of(spec: str, D: int = 64, E: int | None = None) -> Plan:
    return lower_program_to_plan(triton_cases.specialized(spec, D, E or D))


@pytest.mark.parametrize(
    ("spec", "dtype", "D", "target", "why"),
    [
        ("", "bf16", 64, Target("cuda", "sm_80"), "are for sm_90"),
        ("", "f32", 64, SM90, "take bf16 and f16, not f32"),
        ("", "bf16", 20, SM90, "multiples of 16 bytes"),
        ("", "bf16", 512, SM90, "as wide as these"),
        ("normalize relu2(score)", "f16", 64, SM90, "beyond float16"),
        ("normalize softmax(score * rowmax(score))", "bf16", 64, SM90, "a pass that sums no vectors"),
        ("score 1 / (1 + abs(i - j))", "bf16", 64, SM90, "without a dot product"),
    ],
)
def test_what_it_does_not_take(spec: str, dtype: str, D: int, target: Target, why: str) -> None:
    reason = why_not_hopper(plan_of(spec, D), Workload(dtype, (), False), target)
    assert reason is not None
    assert why in reason
    if dtype == "bf16" and target is SM90:
        assert why in outlook(plan_of(spec, D))


def test_masks_that_need_lists_of_tiles_are_taken() -> None:
    plan = plan_of("input doc: int[B, N] mask same_document(doc) and causal")
    assert why_not_hopper(plan, Workload("bf16", ("i64",), False), SM90) is None
    assert "portable" not in outlook(plan)


def test_every_configuration_fits_on_paper() -> None:
    for D in (16, 64, 72, 96, 128, 192, 256):
        configs = list(hopper_configs(plan_of("mask causal", D)))
        assert configs
        assert len(set(configs)) == len(configs)
        for config in configs:
            assert config.block_m == 64 * config.warpgroups
            assert sum(config.registers[:1]) < config.registers[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "dtype", "D"), [("mask causal", "bf16", 128), ("normalize sigmoid_n(score)", "f16", 96)]
)
def test_kernels_copy_by_tma_and_multiply_by_wgmma(spec: str, dtype: str, D: int) -> None:
    pytest.importorskip("triton")
    made = compile_for_hopper(plan_of(spec, D), Workload(dtype, (), False), SM90)
    assert isinstance(made, Compiled), made
    assert fault_of(made) is None
    (binary,) = made.binaries
    for instruction in ("cp.async.bulk.tensor.4d", "wgmma.mma_async", "setmaxnreg", "mbarrier.try_wait"):
        assert instruction in binary.assembly
    (launch,) = made.lowered.recipe.launches
    values = [value for tree in launch.arguments.values() for _, value in leaves(tree)]
    parameters = sum(1 + 2 * len(value.block) if isinstance(value, Box) else 1 for value in values)
    assert binary.assembly.count(".param .") == parameters + 2  # and Triton's two scratch memories
    assert from_json(to_json(made.lowered.recipe)).launches[0].arguments == {"": tuple(values)}


@pytest.mark.slow
def test_a_configuration_that_spills_is_rejected() -> None:
    pytest.importorskip("triton")
    made = compile_with(plan_of("mask causal", 128), SOFTMAX, SM90, HopperConfig(192, 128, 4, 2, 1))
    assert "spills" in (fault_of(made) or "") or "shared memory" in (fault_of(made) or "")


def test_the_tuner_may_choose_the_family() -> None:
    space = space_of(plan_of("mask causal", 128), SOFTMAX, SM90, {})
    assert space.problem(space.default) is None
    assert space.default["family"] == "hopper"
    stream = {"family": "stream", "block_m": 64, "block_n": 64, "warps": 4, "stages": 2, "queries": 1}
    assert space.problem(stream) is None
    for harm in ({"queries": 2}, {"block_m": 192}):
        assert space.problem({**stream, **harm}) is not None
    for harm in ({"warps": 8}, {"block_m": 64}, {"block_n": 256, "stages": 4}):
        assert space.problem({**space.default, **harm}) is not None


def test_descriptors_say_what_tma_wants() -> None:
    calls: list[tuple[object, ...]] = []
    descriptors = Descriptors(lambda *arguments: calls.append(arguments))
    tensor = torch.zeros(2, 1, 100, 72, dtype=torch.bfloat16)
    box = Box("bf16", "k", 64, 8, (1, 1, 128, 16))
    room, place = descriptors.find(box, tensor)
    assert place % 64 == 0
    assert ctypes.addressof(room) <= place <= ctypes.addressof(room) + len(room) - 128
    assert descriptors.find(box, tensor)[1] == place
    ((name, _, kind, rank, address, extents, strides, block, steps, *rest),) = calls
    assert name == "TensorMapEncodeTiled"
    assert (kind.value, rank.value) == (9, 4)  # type: ignore[attr-defined]
    assert address.value == tensor.data_ptr() + 128  # type: ignore[attr-defined]
    assert list(extents) == [8, 100, 1, 2]  # type: ignore[call-overload]
    assert list(strides)[:3] == [144, 16, 14400]  # type: ignore[call-overload]
    assert list(block) == [16, 128, 1, 1]  # type: ignore[call-overload]
    assert list(steps) == [1, 1, 1, 1]  # type: ignore[call-overload]
    assert [one.value for one in rest] == [0, 1, 2, 0]  # type: ignore[attr-defined]


def test_wide_rows_are_moved_by_the_swizzle() -> None:
    assert Box("bf16", "k", 0, 128, (1, 1, 64, 128)).moved == (1, 1, 64, 64)
    assert Box("bf16", "k", 0, 32, (1, 1, 64, 32)).swizzle == 64


def test_strides_that_descriptors_do_not_take_are_copied() -> None:
    boxed = Layout(16, boxed=True)
    plain = torch.zeros(2, 4, 10, 64, dtype=torch.bfloat16)
    for fits in (plain, plain.transpose(1, 2).contiguous().transpose(1, 2), plain[:, :1], plain[:1]):
        assert _laid_out(fits, boxed) is fits
    for other in (
        plain[:, :1].expand_as(plain),
        plain[..., ::2],
        plain[..., 1:],
        torch.cat((plain, plain[..., :1]), -1)[..., :64],
    ):
        copied = _laid_out(other, boxed)
        assert copied is not other
        assert torch.equal(copied, other)
    assert _laid_out(plain[:, :1].expand_as(plain), Layout(16)).stride(1) == 0


def test_shared_memory_on_paper_is_what_kernels_take() -> None:
    config = HopperConfig(128, 128, 4, 2, 2)
    assert config.shared(128, 128) <= SHARED_MEMORY["sm_90"]
    assert config.shared(128, 128) - 1024 == 2 * (2 * 128 * 256 + 2 * 128 * 128)
