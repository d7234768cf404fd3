"""The kernels with TMA and warp specialisation on a Hopper GPU: which plans get them, sizes, layouts, accuracy."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import triton_cases
from test_gpu_numerics import larger
from triton_cases import CASES, Case, make

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Kernel, Target, Workload
from attnc.backends.triton import TritonBackend
from attnc.backends.triton.backend import device_kernel
from attnc.backends.triton.choice import compile_for_hopper
from attnc.backends.triton.few import FewRows
from attnc.backends.triton.kernel import DeviceKernel
from attnc.targets import target_of_device

pytestmark = pytest.mark.gpu
WIDE = {"D": 64, "E": 64}
PORTABLE = {"two passes", "two passes over a mask", "mask by token", "projections", "output of a part"}
"""Cases that may get portable kernels."""


@cache
def hopper_kernel(spec: str, D: int, E: int, workload: Workload, target: Target) -> Kernel:
    """The kernel for Hopper where there is one, for calls with few rows too."""
    plan = lower_program_to_plan(triton_cases.specialized(spec, D, E))
    made = compile_for_hopper(plan, workload, target)
    return TritonBackend().build(plan, workload, target) if isinstance(made, str) else device_kernel(made, target)


@pytest.fixture(autouse=True)
def _hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    if target_of_device("cuda") != Target("cuda", "sm_90"):
        pytest.skip("needs sm_90")
    monkeypatch.setattr(triton_cases, "kernel", hopper_kernel)


def family(case: Case, dtype: str) -> list[str]:
    made = make(case, dtype, 0, "cuda").kernel(Target("cuda", "sm_90"))
    assert isinstance(made, DeviceKernel | FewRows)
    return [launch.family for launch in made.recipe.launches]


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_case_of_whole_vectors(case: Case, dtype: str, seed: int) -> None:
    """Every case at widths that TMA takes; those which get portable kernels are known."""
    wide = larger(case).at(**WIDE)
    make(wide, dtype, seed, "cuda").compare(Target("cuda", "sm_90"))
    if dtype == "bf16" and case.name not in PORTABLE:
        assert "hopper" in family(wide, dtype)


@pytest.mark.parametrize("widths", [(64, 64), (72, 72), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)])
def test_sizes(widths: tuple[int, int], seed: int) -> None:
    """One kernel at sizes from one row and one key to several tiles for each multiprocessor."""
    case = triton_cases.find("causal").at(D=widths[0], E=widths[1])
    for sizes in (
        {"M": 1, "N": 1}, {"M": 1, "N": 1000}, {"M": 129, "N": 127}, {"M": 300, "N": 5}, {"M": 64, "N": 2048},
        {"B": 3, "H": 12, "G": 3, "M": 1100, "N": 1100},
    ):  # fmt: skip
        make(case.at(**sizes), "bf16", seed, "cuda").compare(Target("cuda", "sm_90"))


def test_layouts_that_tma_does_not_take_are_copied(seed: int) -> None:
    data = make(triton_cases.find("causal").at(**WIDE, M=200, N=300), "bf16", seed, "cuda")
    q, k, v = data.q, data.k, data.v
    data.q = q.transpose(1, 2).contiguous().transpose(1, 2)
    data.k = k[:, :1].expand_as(k)
    data.v = torch.cat((v.new_zeros(*v.shape[:-1], 3), v), -1)[..., 3:]
    data.compare(Target("cuda", "sm_90"))
    out = q.new_full((*q.shape[:2], 2 * q.shape[2], 2 * v.shape[-1]), float("nan"))
    expected, _ = data.expected()
    data.run(Target("cuda", "sm_90"), out[..., ::2, ::2])
    torch.testing.assert_close(out[..., ::2, ::2].double(), expected, rtol=3e-2, atol=3e-2)
    assert out[..., 1::2, :].isnan().all()


@pytest.mark.parametrize("scale", [1.0, 8.0, 60.0])
def test_the_lagging_maximum_is_as_exact(scale: float, seed: int) -> None:
    """Scores that ascend along the keys move the maximum in every tile, or leave it behind by less than its slack."""
    data = make(triton_cases.find("causal").at(**WIDE, M=700, N=700), "bf16", seed, "cuda")
    ramp = torch.linspace(0, 1, 700, device="cuda")[:, None]
    data.k = (data.k.float() * 0.2 + ramp * scale).bfloat16()
    data.q = (data.q.float().abs()).bfloat16()
    out, lse = data.run(Target("cuda", "sm_90"))
    expected, rows = data.expected()
    assert lse is not None
    assert rows is not None
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(lse.double(), rows, rtol=1e-5, atol=1e-4)


def test_nan_and_infinity_stay_in_their_rows(seed: int) -> None:
    data = make(triton_cases.find("causal").at(**WIDE, M=300, N=300), "bf16", seed, "cuda")
    clean, _ = data.run(Target("cuda", "sm_90"))
    data.q[:, :, 77] = float("nan")
    data.q[:, :, 99] = float("inf")
    out, _ = data.run(Target("cuda", "sm_90"))
    assert out[:, :, [77, 99]].isnan().all()
    kept = [row for row in range(300) if row not in (77, 99)]
    torch.testing.assert_close(out[:, :, kept], clean[:, :, kept], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_the_fast_tangent_keeps_its_word(dtype: str, seed: int) -> None:
    """Scores of up to 30 by `tanh.approx`: weights are off by at most 30 * 2**-10.9 more than they would be."""
    case = Case("softcap", "score softcap(dot(q, k) * 0.7, 30)", {"M": 300, "N": 300, **WIDE}, lse=True)
    data = make(case, dtype, seed, "cuda")
    out, lse = data.run(Target("cuda", "sm_90"))
    expected, rows = data.expected()
    assert lse is not None
    assert rows is not None
    error = 30 * 2**-10.9
    assert ((lse.double() - rows).abs() <= error).all()
    torch.testing.assert_close(out.double(), expected, rtol=2 * error, atol=2 * error)


def test_two_calls_give_the_same_bits(seed: int) -> None:
    data = make(triton_cases.find("documents").at(**WIDE, M=900, N=900), "bf16", seed, "cuda")
    first, _ = data.run(Target("cuda", "sm_90"))
    for _ in range(3):
        again, _ = data.run(Target("cuda", "sm_90"))
        assert torch.equal(first, again)
