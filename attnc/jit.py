"""Kernels on demand. What was compiled before comes from the cache without the compiler being imported."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from attnc import cache
from attnc.backends.protocol import Kernel, Target, Workload
from attnc.ir.program import Program
from attnc.plan import Plan
from attnc.runtime import Widths
from attnc.spec import Spec
from attnc.targets import backend_for


@dataclass(frozen=True, slots=True)
class Checked:
    """A program and its ``meaning``: equal for programs that can share kernels."""

    program: Program
    meaning: tuple[Any, ...]

    @classmethod
    def of(cls, program: Program) -> Checked:
        """Programs of equal canonical form can share kernels if they take their arguments in the same order."""
        from attnc.ir.canonical import canonicalize

        form = canonicalize(program)
        inputs = tuple(form.inputs.index(source.name) for source in program.inputs)
        parameters = tuple(form.parameters.index(parameter.name) for parameter in program.parameters)
        return cls(program, (form.text, inputs, parameters, tuple(map(form.extents.index, program.extents))))


def recall_spec(spec: Spec) -> Checked:
    """Check a spec, or recall that it was right before. One that imports others is checked every time."""

    def checked() -> Checked:
        from attnc.compiler import check_spec

        return Checked.of(check_spec(spec))

    if "import" in spec.source.text:
        return checked()
    key = cache.key_of(spec.source.name, spec.source.text, spec.name, repr(sorted(spec.constants.items())))
    return cache.remember(key, checked)


def build_count() -> int:
    """How many kernels this process compiled; those from the cache do not count."""
    return cache.kernels.built


class JustInTime:
    """Kernels of one program, compiled when they are first needed; a :class:`attnc.runtime.KernelSource`."""

    def __init__(self, checked: Checked, backend: str | None = None) -> None:
        self.program = checked.program
        self._meaning = checked.meaning
        self._backend = backend
        self._plans: dict[Widths, Plan] = {}

    @property
    def tag(self) -> str:
        """The backend, where it is not the usual one."""
        return self._backend or ""

    def plan(self, widths: Widths) -> Plan:
        """The plan for these head widths."""
        if widths not in self._plans:
            from attnc import compiler

            self._plans[widths] = compiler.plan_program(compiler.specialize_program(self.program, widths))
        return self._plans[widths]

    def kernel(self, widths: Widths, workload: Workload, target: Target) -> Kernel:
        """The kernel from the cache, or built and then kept."""
        backend = backend_for(target, self._backend)
        key = cache.key_of(self._meaning, widths, asdict(workload), str(target), backend.name, backend.toolchain())

        def build() -> Kernel:
            from attnc.compiler import compile_spec

            kernel = compile_spec(self.program, widths, workload, target, self._backend).kernel
            assert kernel is not None
            return kernel

        return cache.kernels.get(key, backend, build)

    def lse_problem(self, widths: Widths) -> str | None:
        """Why the rows have no log-sum-exp."""
        if self.plan(widths).lse is not None:
            return None
        return (
            f"`{self.program.name}` has no log-sum-exp: its weight has not exactly one softmax denominator, "
            "so return_lse=True means nothing"
        )

    def input_dtypes(self, dtype: str, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the call: kernels are built for what they are given."""
        return inputs
