"""Backwards of specs as kernels of given configurations: compiled in other processes, checked, ready to be timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from cases import CASES, Case, Inputs, Shape, tensors
from torch import Tensor

import attnc
from attnc.analyse.gradient.backward import Backward
from attnc.analyse.gradient.groups import sum_groups
from attnc.analyse.hoist import hoist
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton.backend import device_backward, device_kernel
from attnc.backends.triton.choice import choose
from attnc.backends.triton.compiling import Compiled
from attnc.backends.triton.compiling_backward import CompiledBackward, Configs, compile_backward, compile_with
from attnc.backends.triton.configs import SCATTER, SHARED_MEMORY, Config
from attnc.backends.triton.hopper.backward_configs import WalkConfig, fault_of
from attnc.backends.triton.kernel import DeviceBackward, DeviceKernel
from attnc.compiler import derive_backward, specialize_program
from attnc.gradients import Call, gradients, results_for
from attnc.validate import DTYPES

GPU = torch.device("cuda")
ELEMENT = "bf16"
TOLERANCE = 1.5e-2
"""Of gradients beside those of the reference in float32, relative in the Euclidean norm."""
SMALL = Shape(2, 4, 2, 389, 0)


def _square(shape: Shape, inputs: Inputs) -> int:
    return shape.N**2


def _triangle(shape: Shape, inputs: Inputs) -> int:
    return shape.N * (shape.N + 1) // 2


def _buckets(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    return {"table": torch.linspace(-1, 1, 32 * shape.H, device=device).view(32, shape.H).contiguous()}


_T5 = """
def bucket(distance, exact, last, far) =
    distance if distance < exact
    else min(exact + floor(log(max(distance, 1) / exact) / log(far / exact) * (last + 1 - exact) + 0.0001), last)

attention t5 {
    input table: real[32, H]
    mask causal
    score dot(q, k) * scale + table[bucket(i - j, 16, 31, 128), h]
}
"""
_TAPA = """
attention tapa {
    let half = D // 2
    let amplitude = dot(q[0:half], k[0:half]) / sqrt(half)
    let phase = dot(q[half:D], k[half:D]) / sqrt(D - half)
    mask  causal
    score amplitude * cos(6.283185307179586 * abs(i - j) ** 0.1 * phase)
}
"""
MORE = (
    Case("cog", "attention cog { mask causal normalize cog(score) }", _triangle, flex=False),
    Case("affine", "attention affine { mask causal normalize affine(score, 0.7, 0.01) }", _triangle, flex=False),
    Case("t5", _T5, _triangle, _buckets, flex=False),
    Case("tapa", _TAPA, _triangle, flex=False),
)
EVERY = {case.name: case for case in (*CASES, *MORE)}


@dataclass(frozen=True, slots=True)
class Subject:
    """The gradients of some arguments of a case, with ``inputs`` of its real inputs too: what kernels are made from."""

    case: str
    D: int
    inputs: bool = False
    wanted: tuple[str, ...] = ("q", "k", "v")


@cache
def backward_of(subject: Subject) -> Backward:
    case = EVERY[subject.case]
    program = attnc.loads(case.spec).program
    derived = derive_backward(specialize_program(program, (subject.D, subject.D)))
    names = {*subject.wanted, *(x.name for x in program.inputs if subject.inputs)}
    return sum_groups(derived.only(names))


def workload_of(subject: Subject, unordered: bool = False) -> Workload:
    made = EVERY[subject.case].inputs(replace(SMALL, D=subject.D), torch.device("cpu"))
    types = tuple(DTYPES[made[x.name].dtype] for x in backward_of(subject).plan.program.inputs)
    return Workload(ELEMENT, types, False, backward_of(subject).saved, unordered)


def compiled_forward(subject: Subject, target: Target) -> Compiled:
    return choose(hoist(backward_of(subject).plan), workload_of(subject), target)


def compiled(subject: Subject, target: Target, configs: Configs | str) -> CompiledBackward | str:
    """Kernels with given configurations, or the chosen ones (``fused``, ``pair``); or why there are none."""
    backward = backward_of(subject)
    try:
        if isinstance(configs, str):
            return compile_backward(backward, workload_of(subject, configs == "fused"), target)
        made = compile_with(backward, workload_of(subject), target, {"pairs": SCATTER, **configs})
    except Exception as error:  # what does not compile is a result
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"[:160]
    for launch, binary in zip(made.lowered.recipe.launches, made.binaries, strict=True):
        if binary.shared > SHARED_MEMORY[target.arch]:
            return f"{launch.name}: {binary.shared} bytes of shared memory"
        if binary.report.serialised:
            return f"{launch.name}: products are serialised"
    return made


def faults(made: CompiledBackward) -> list[str]:
    """What the compiler's reports hold against kernels, which are timed all the same."""
    found = []
    for launch, binary in zip(made.lowered.recipe.launches, made.binaries, strict=True):
        over = "rows" if launch.constants.get("OVER_ROWS") else "keys"
        config = made.configs[over]
        if isinstance(config, WalkConfig) and launch.family == "hopper_backward":
            found.append(fault_of(config, binary.report))
        elif launch.family == "stream" and binary.report.moved:
            found.append(f"moves registers {binary.report.moved} times a step")
    return [one for one in found if one]


def named(configs: Mapping[str, Config]) -> str:
    """A short name of the tiles of the walks."""

    def one(config: Config) -> str:
        flags = [x for x in ("fused", "hide", "eager", "apart") if getattr(config, x, False)]
        shape = f"{config.block_m}x{config.block_n}/{config.warps}w{config.stages}s"
        return "-".join([shape, *flags])

    return " ".join(f"{over} {one(configs[over])}" for over in ("keys", "rows") if over in configs)


class Problem:
    """One call: its tensors, and what a forward saved for it."""

    def __init__(self, subject: Subject, shape: Shape, forward: DeviceKernel) -> None:
        self.subject, self.shape, self.case = subject, shape, EVERY[subject.case]
        self.backward = backward_of(subject)
        self.q, self.k, self.v = tensors(shape, torch.bfloat16, GPU)
        self.inputs = self.case.inputs(shape, GPU)
        given = [self.inputs[x.name] for x in self.backward.plan.program.inputs]
        self.out = torch.empty_like(self.q)
        generator = torch.Generator(GPU).manual_seed(1)
        self.d_out = torch.randn(self.out.shape, generator=generator, dtype=self.out.dtype, device=GPU)
        rows = self.out.shape[:3]
        self.states = {f"saved_{name}": torch.empty(rows, device=GPU) for name in self.backward.saved}
        forward.run(self.q, self.k, self.v, given, (), (), self.out, None, list(self.states.values()))
        self.given = given

    def call(self) -> Call:
        shape = self.shape
        sizes = {"B": shape.B, "H": shape.H, "G": shape.G, "M": shape.N, "N": shape.N, "D": shape.D, "E": shape.D}
        held = {"q": self.q, "k": self.k, "v": self.v, **self.inputs}
        return Call(sizes, held, {}, self.backward.plan.program.group)

    def pull(self, kernel: DeviceBackward) -> Callable[[], list[Tensor]]:
        """The gradients by a kernel, in the order of their names."""
        known = {"out": self.out, "d_out": self.d_out, **self.states}
        reads = [known[source.name] for source in self.backward.reads]
        names = sorted({part.name for part in self.backward.contributions})

        def pulled() -> list[Tensor]:
            call = self.call()
            results = results_for(self.backward, call)
            kernel.run(self.q, self.k, self.v, self.given, (), (), reads, results)
            return gradients(self.backward, call, results, names)

        return pulled

    def expected(self) -> list[Tensor]:
        """By autograd through the reference in float32."""
        names = sorted({part.name for part in self.backward.contributions})
        wide = {name: x.float() if x.is_floating_point() else x for name, x in self.call().tensors.items()}
        leaves = [wide[name].requires_grad_() for name in names]
        inputs: dict[str, Any] = {name: wide[name] for name in self.inputs}
        out = attnc.loads(self.case.spec).reference(wide["q"], wide["k"], wide["v"], **inputs)
        assert isinstance(out, Tensor)
        return list(torch.autograd.grad(out, leaves, self.d_out.float()))


def error_of(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative difference in the Euclidean norm; infinite where something is no number."""
    errors = []
    for mine, theirs in zip(found, expected, strict=True):
        size = max(theirs.float().norm().item(), 1e-20)
        errors.append((mine.float() - theirs.float()).norm().item() / size)
    return max((error if math.isfinite(error) else math.inf for error in errors), default=0.0)


def checked(subject: Subject, forward: DeviceKernel, kernel: DeviceBackward) -> float:
    """The error at a small size that no tile divides, with two query heads to a key head.

    Raises:
        AssertionError: it is too large.
    """
    problem = Problem(subject, replace(SMALL, D=subject.D), forward)
    error = error_of(problem.pull(kernel)(), problem.expected())
    assert error < TOLERANCE, f"{subject.case} of {subject.D} lanes: error {error}"
    return error


def ready_forward(made: Compiled, target: Target) -> DeviceKernel:
    return device_kernel(made, target)


def ready(made: CompiledBackward, target: Target) -> DeviceBackward:
    return device_backward(made, target)
