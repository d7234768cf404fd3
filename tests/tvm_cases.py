"""Runs attentions on the CPU backend, in poisoned memory, and on the reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Kernel, Target, Workload
from attnc.backends.tvm import TvmBackend
from attnc.check import check
from attnc.grammar.source import Source
from attnc.ir.nodes import Kind
from attnc.ir.program import Program
from attnc.ir.specialize import specialize
from attnc.reference import evaluate
from attnc.signature import size_value

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
NAMES = {**{dtype: name for name, dtype in DTYPES.items()}, torch.int32: "i32", torch.int64: "i64", torch.bool: "bool"}
TOLERANCES = {"f64": 1e-11, "f32": 3e-5, "f16": 4e-3, "bf16": 3e-2}
SIZES = {"B": 2, "H": 4, "G": 2, "M": 37, "N": 71, "D": 32, "E": 16}
CPU = Target("cpu")
Maker = Callable[[Mapping[str, int], torch.Generator], Tensor]


@dataclass(slots=True)
class Call:
    """A program and the arguments of one call of it."""

    program: Program
    q: Tensor
    k: Tensor
    v: Tensor
    inputs: list[Tensor]
    params: Sequence[float] = ()
    extents: Sequence[int] = ()
    lse: bool = False

    def workload(self) -> Workload:
        return Workload(NAMES[self.q.dtype], tuple(NAMES[tensor.dtype] for tensor in self.inputs), self.lse)

    def kernel(self) -> Kernel:
        return build(self.program, self.workload())

    def run(self, kernel: Kernel | None = None) -> tuple[Tensor, Tensor | None]:
        """The kernel's results."""
        batch, heads, rows, _ = self.q.shape
        out = self.q.new_full((batch, heads, rows, size_value(self.program.body.output.width, {})), float("nan"))
        wide = torch.float64 if self.q.dtype == torch.float64 else torch.float32
        lse = self.q.new_full((batch, heads, rows), float("nan"), dtype=wide) if self.lse else None
        made = kernel or self.kernel()
        made.run(self.q, self.k, self.v, self.inputs, self.params, self.extents, out, lse)
        return out, lse

    def expected(self) -> tuple[Tensor, Tensor | None]:
        """The reference's results in float64."""

        def wide(x: Tensor) -> Tensor:
            return x.double() if x.is_floating_point() else x

        inputs = {declared.name: wide(x) for declared, x in zip(self.program.inputs, self.inputs, strict=True)}
        params = {p.name: x for p, x in zip(self.program.parameters, self.params, strict=True)}
        extents = dict(zip(self.program.extents, self.extents, strict=True))
        tokens = wide(self.q), wide(self.k), wide(self.v)
        found = evaluate(self.program, *tokens, inputs, params, extents, self.lse)
        return found if isinstance(found, tuple) else (found, None)

    def compare(self, loose: float = 1.0, kernel: Kernel | None = None) -> None:
        """Assert that the kernel does what the reference does."""
        tolerance = TOLERANCES[NAMES[self.q.dtype]] * loose
        out, lse = self.run(kernel)
        expected, row = self.expected()
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
        if lse is not None and row is not None:
            torch.testing.assert_close(lse.double(), row, rtol=tolerance, atol=tolerance)


@cache
def specialized(spec: str, D: int, E: int) -> Program:
    """The program of a spec's clauses."""
    return specialize(check(Source("case.attn", f"attention case {{ {spec} }}")), D, E)


@cache
def build(program: Program, workload: Workload) -> Kernel:
    """The kernel of a program; made once."""
    plan = lower_program_to_plan(program)
    backend = TvmBackend()
    problems = backend.problems(plan, workload, CPU)
    assert not problems, problems
    return backend.build(plan, workload, CPU)


def call(
    spec: str,
    seed: int,
    *,
    dtype: str = "f32",
    made: Mapping[str, Maker] | None = None,
    params: Sequence[float] = (),
    extents: Sequence[int] = (),
    lse: bool = False,
    **sizes: int,
) -> Call:
    """A call with fresh random data; reals that ``made`` does not make are normal."""
    random = torch.Generator().manual_seed(seed)
    given = {**SIZES, **sizes}
    program = specialized(spec, given["D"], given["E"])

    def normal(*dims: int) -> Tensor:
        return torch.randn(dims, generator=random, dtype=torch.float64).to(DTYPES[dtype])

    inputs = []
    for declared in program.inputs:
        if made and declared.name in made:
            inputs.append(made[declared.name](given, random))
        else:
            assert declared.kind is Kind.REAL, declared.name
            inputs.append(normal(*(size_value(dim, given) for dim in declared.dims)))
    q = normal(given["B"], given["H"], given["M"], given["D"])
    k = normal(given["B"], given["G"], given["N"], given["D"])
    v = normal(given["B"], given["G"], given["N"], given["E"])
    return Call(program, q, k, v, inputs, params, extents, lse)


__all__ = ["CPU", "DTYPES", "NAMES", "SIZES", "TOLERANCES", "Call", "build", "call", "field", "specialized"]
