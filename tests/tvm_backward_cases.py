"""Runs derived backwards on the CPU backend, and autograd through the reference in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from gradient_interpreter import _add as add
from gradient_interpreter import save
from torch import Tensor
from tvm_cases import CPU, NAMES

from attnc.analyse.gradient.backward import Backward
from attnc.analyse.gradient.derive import derive
from attnc.analyse.hoist import hoist
from attnc.analyse.lower import stream_program
from attnc.backends.protocol import BackwardKernel, Kernel, Workload
from attnc.backends.tvm import TvmBackend
from attnc.check import check
from attnc.grammar.source import Source
from attnc.ir.nodes import Kind
from attnc.ir.program import Program
from attnc.ir.specialize import specialize
from attnc.reference import evaluate
from attnc.reference.interpreter import Run
from attnc.signature import size_value

SIZES = {"B": 2, "H": 4, "G": 2, "M": 37, "N": 71, "D": 12, "E": 8}
TOLERANCES = {"f64": 1e-9, "f32": 2e-4, "f16": 1e-2, "bf16": 6e-2}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


@cache
def derived(spec: str, D: int, E: int) -> Backward:
    """The backward of a spec's clauses, of all gradients."""
    program = specialize(check(Source("case.attn", f"attention case {{ {spec} }}")), D, E)
    return derive(stream_program(program, keep_detach=True))


@cache
def forward_kernel(backward: Backward, workload: Workload) -> Kernel:
    """The forward that saves what the backward needs; made once."""
    return TvmBackend().build(hoist(backward.plan), workload, CPU)


@cache
def backward_kernel(backward: Backward, workload: Workload) -> BackwardKernel:
    """The backward; made once."""
    problems = TvmBackend().backward_problems(backward, workload, CPU)
    assert not problems, problems
    return TvmBackend().build_backward(backward, workload, CPU)


@dataclass(slots=True)
class Training:
    """A spec, the arguments of a call, and the cotangent of its output."""

    backward: Backward
    tokens: tuple[Tensor, Tensor, Tensor]
    inputs: list[Tensor]
    params: Sequence[float]
    extents: Sequence[int]
    d_out: Tensor

    @property
    def program(self) -> Program:
        return self.backward.plan.program

    def workload(self) -> Workload:
        return Workload(NAMES[self.d_out.dtype], tuple(NAMES[x.dtype] for x in self.inputs), False, self.backward.saved)

    def named(self) -> tuple[dict[str, Tensor], dict[str, float], dict[str, int]]:
        """Inputs, parameters and extents by name, in float64."""
        inputs = {x.name: wide(given) for x, given in zip(self.program.inputs, self.inputs, strict=True)}
        params = {p.name: x for p, x in zip(self.program.parameters, self.params, strict=True)}
        return inputs, params, dict(zip(self.program.extents, self.extents, strict=True))

    def run(self, known: dict[str, Tensor]) -> Run:
        """The words of the reference on this call; it reads inputs from ``known``."""
        _, params, extents = self.named()
        q, k, v = map(wide, self.tokens)
        return Run(self.program, (q, k, v), known, params, extents, torch.float64)

    def exact_reads(self) -> dict[str, Tensor]:
        """What the backward reads, computed in float64 on dense tensors."""
        known = self.named()[0]
        save(self.run(known), self.backward.plan, known)
        known |= {"out": known["out"].to(self.d_out.dtype), "d_out": self.d_out}
        return {name: x if name in ("out", "d_out") else x.to(self.real) for name, x in known.items()}

    @property
    def real(self) -> torch.dtype:
        """The element type of states and results."""
        return torch.float64 if self.d_out.dtype == torch.float64 else torch.float32

    def kernel_reads(self) -> dict[str, Tensor]:
        """What the backward reads, from the forward kernel, in memory that was poisoned before."""
        out = torch.full_like(self.d_out, float("nan"))
        saved = {}
        for x in self.backward.reads:
            if x.name.startswith("saved_"):
                widths = (size_value(dim, {}) for dim in x.dims[3:])
                saved[x.name] = torch.full((*out.shape[:3], *widths), float("nan"), dtype=self.real)
        states = [saved[f"saved_{name}"] for name in self.backward.saved]
        kernel = forward_kernel(self.backward, self.workload())
        kernel.run(*self.tokens, self.inputs, self.params, self.extents, out, None, states)
        return {"out": out, "d_out": self.d_out, **saved}

    def results(self, kernel: BackwardKernel | None = None, exact: bool = True) -> list[Tensor]:
        """What the backward kernel writes, in memory that was poisoned before."""
        q, k, _ = self.tokens
        sizes = {"B": q.shape[0], "H": q.shape[1], "G": k.shape[1], "M": q.shape[2], "N": k.shape[2]}
        sizes |= dict(zip(self.program.extents, self.extents, strict=True))
        results = [
            torch.full([size_value(dim, sizes) for dim in x.dims], float("nan"), dtype=self.real)
            for x in self.backward.results
        ]
        known = self.exact_reads() if exact else self.kernel_reads()
        kernel = kernel or backward_kernel(self.backward, self.workload())
        reads = [known[x.name] for x in self.backward.reads]
        kernel.run(*self.tokens, self.inputs, self.params, self.extents, reads, results)
        return results

    def found(self, kernel: BackwardKernel | None = None, exact: bool = True) -> dict[str, Tensor]:
        """The gradients by name, gathered from the kernels' results in float64."""
        inputs, params, _ = self.named()
        tokens, run = tuple(map(wide, self.tokens)), self.run(inputs)
        total = {name: torch.zeros_like(x) for name, x in zip("qkv", tokens, strict=True)}
        total |= {name: torch.zeros_like(x) for name, x in inputs.items() if x.is_floating_point()}
        total |= {name: torch.zeros((), dtype=torch.float64) for name in params}
        results = self.results(kernel, exact)
        assert not any(x.isnan().any() for x in results)
        for contribution, result in zip(self.backward.contributions, results, strict=True):
            add(run, contribution, result.double(), total[contribution.name])
        return total

    def expected(self) -> dict[str, Tensor]:
        """Autograd through the reference."""
        inputs, params, extents = self.named()
        leaves: dict[str, Any] = dict(zip("qkv", map(wide, self.tokens), strict=True)) | inputs
        leaves |= {name: torch.tensor(value, dtype=torch.float64) for name, value in params.items()}
        leaves = {name: x.detach().requires_grad_() if x.is_floating_point() else x for name, x in leaves.items()}
        q, k, v = (leaves[name] for name in "qkv")
        out = evaluate(self.program, q, k, v, {n: leaves[n] for n in inputs}, {n: leaves[n] for n in params}, extents)
        wanted = {name: x for name, x in leaves.items() if x.requires_grad}
        assert isinstance(out, Tensor)
        if not out.requires_grad:
            return {name: torch.zeros_like(x) for name, x in wanted.items()}
        found = torch.autograd.grad(out, list(wanted.values()), wide(self.d_out), allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if x is None else x
            for (name, leaf), x in zip(wanted.items(), found, strict=True)
        }

    def compare(self, loose: float = 1.0, kernel: BackwardKernel | None = None, exact: bool = True) -> None:
        """Assert that the kernels' gradients are those of the reference, relative to the largest of each."""
        tolerance = TOLERANCES[NAMES[self.d_out.dtype]] * loose
        expected = self.expected()
        for name, gradient in self.found(kernel, exact).items():
            largest = float(expected[name].abs().max()) if expected[name].numel() else 0.0
            torch.testing.assert_close(
                gradient,
                expected[name],
                rtol=tolerance,
                atol=tolerance * max(1.0, largest),
                msg=lambda message, name=name: f"{name}: {message}",
            )


def wide(x: Tensor) -> Tensor:
    return x.detach().double() if x.is_floating_point() else x


def training(
    spec: str,
    seed: int,
    *,
    dtype: str = "f64",
    made: Mapping[str, Tensor] | None = None,
    params: Sequence[float] = (),
    extents: Sequence[int] = (),
    **sizes: int,
) -> Training:
    """A call with fresh random data; inputs of reals that ``made`` does not hold are normal."""
    random = torch.Generator().manual_seed(seed)
    s = {**SIZES, **sizes}
    backward = derived(spec, s["D"], s["E"])

    def normal(*dims: int) -> Tensor:
        return torch.randn(dims, generator=random, dtype=torch.float64).to(DTYPES[dtype])

    inputs = []
    s_all = s | dict(zip(backward.plan.program.extents, extents, strict=True))
    for declared in backward.plan.program.inputs:
        dims = [size_value(dim, s_all) for dim in declared.dims]
        if made and declared.name in made:
            inputs.append(made[declared.name])
        else:
            real = declared.kind is Kind.REAL
            inputs.append(normal(*dims) if real else torch.randint(0, 3, dims, generator=random))
    q = normal(s["B"], s["H"], s["M"], s["D"])
    k, v = normal(s["B"], s["G"], s["N"], s["D"]), normal(s["B"], s["G"], s["N"], s["E"])
    width = size_value(backward.plan.output.width, s)  # type: ignore[arg-type]
    return Training(backward, (q, k, v), inputs, params, extents, normal(s["B"], s["H"], s["M"], width))
