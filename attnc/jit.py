"""Kernels on demand. What was compiled before comes from the cache without the compiler being imported."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from attnc import cache
from attnc.autotune.bucket import Bucket, bucket_of
from attnc.autotune.request import Chooser, Direction, Request, untuned
from attnc.backends.protocol import (
    Backend,
    BackwardKernel,
    Choosing,
    Config,
    Kernel,
    Router,
    Selector,
    Target,
    Workload,
)
from attnc.errors import TargetError, UnsupportedError
from attnc.ir.program import Program
from attnc.runtime import Sizes, Training, Widths
from attnc.spec import Spec
from attnc.targets import backend_for, target_of_device

if TYPE_CHECKING:
    from attnc.analyse.gradient.backward import Backward
    from attnc.analyse.key_ranking import KeyRanking
    from attnc.analyse.ranking import Ranking
    from attnc.plan import Plan


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

    def checked() -> tuple[Program, tuple[Any, ...]]:
        from attnc.compiler import check_spec

        found = Checked.of(check_spec(spec))
        return found.program, found.meaning

    if "import" in spec.source.text:
        return Checked(*checked())
    key = cache.key_of(spec.source.name, spec.source.text, spec.name, repr(sorted(spec.constants.items())))
    return Checked(*cache.remember(key, checked))


def build_count() -> int:
    """How many kernels this process compiled; those from the cache do not count."""
    return cache.kernels.built


class JustInTime:
    """Kernels of one program, compiled when they are first needed; a :class:`attnc.runtime.KernelSource`.

    ``choose`` gives the config of each; ``tag`` tells operators apart whose kernels are chosen or made differently.
    """

    def __init__(self, checked: Checked, backend: str | None = None, choose: Chooser = untuned, tag: str = "") -> None:
        self.program = checked.program
        self.tag = " ".join(filter(None, (backend, tag)))
        self._meaning = checked.meaning
        self._tag = tag
        self._backend = backend
        self._choose = choose
        self._plans: dict[Widths, Plan] = {}
        self._backwards: dict[tuple[Widths, bool], Backward] = {}

    def of_part(self, program: Program) -> JustInTime:
        """The kernels of a part of the program, chosen alike."""
        return JustInTime(Checked.of(program), self._backend, self._choose, self._tag)

    def backend_on(self, device: str) -> Backend:
        """What runs on a type of device.

        Raises:
            TargetError: nothing does.
        """
        return backend_for(target_of_device(device), self._backend)

    def router(self, program: Program, widths: Widths, workload: Workload, device: str) -> tuple[Ranking, Router] | str:
        """What chooses for the one route of a part, or why nothing but torch does."""
        from attnc import compiler
        from attnc.analyse.ranking import NotRanked, ranking_of
        from attnc.ir.printer import print_program

        target, backend = target_of_device(device), self.backend_on(device)
        try:
            ranking = ranking_of(compiler.specialize_program(program, widths))
        except NotRanked as reason:
            return str(reason)
        if problems := backend.router_problems(ranking, workload, target):
            return problems[0]
        made = asdict(workload), str(target), backend.name, backend.toolchain(target)
        key = cache.key_of("router", print_program(ranking.program), *made)
        return ranking, cache.kernels.get_router(key, backend, lambda: backend.build_router(ranking, workload, target))

    def plan(self, widths: Widths) -> Plan:
        """The plan for these head widths."""
        if widths not in self._plans:
            from attnc import compiler

            self._plans[widths] = compiler.plan_program(compiler.specialize_program(self.program, widths))
        return self._plans[widths]

    def kernel(self, widths: Widths, workload: Workload, target: Target, sizes: Sizes) -> Kernel:
        """The kernel from the cache, or built and then kept."""
        backend = backend_for(target, self._backend)
        config = self._config("forward", (), widths, workload, target, sizes, self.plan)
        made = dict(config), asdict(workload), str(target), backend.name, backend.toolchain(target)
        key = cache.key_of(self._meaning, widths, *made)

        def build() -> Kernel:
            from attnc.compiler import compile_spec

            kernel = compile_spec(self.program, widths, workload, target, self._backend, config=config).kernel
            assert kernel is not None
            return kernel

        return cache.kernels.get(key, backend, build)

    def refusal(self, widths: Widths, workload: Workload, target: Target) -> str | None:
        """What the backend cannot run."""
        try:
            problems = backend_for(target, self._backend).problems(self.plan(widths), workload, target)
        except UnsupportedError as error:
            return str(error)
        return problems[0].message if problems else None

    def selector(self, ranking: KeyRanking, workload: Workload, target: Target) -> Selector | str:
        """The kernels that choose by a ranking, from the cache or built, or why there are none."""
        backend = backend_for(target, self._backend)
        if not isinstance(backend, Choosing):
            return f"the {backend.name} backend has no kernels that choose"
        if problems := backend.selector_problems(ranking, workload, target):
            return problems[0].message
        from attnc.ir.printer import print_program

        what = "choose", print_program(ranking.program), ranking.heads, asdict(workload)
        key = cache.key_of(*what, str(target), backend.name, backend.toolchain(target))
        return cache.kernels.get_selector(key, backend, lambda: backend.build_selector(ranking, workload, target))

    def training(self, widths: Widths, names: Container[str], workload: Workload, target: Target) -> Training | str:
        """The derived backward for the gradients of ``names`` and its kernels, or why there is none."""
        from attnc import compiler
        from attnc.analyse.gradient.groups import sum_groups
        from attnc.analyse.hoist import hoist

        try:
            backend = backend_for(target, self._backend)
            backward = self._derived(widths, workload.lse).only(names)
            if backend.sums_groups(workload, target):
                backward = sum_groups(backward)
            workload = replace(workload, saved=backward.saved)
            problems = compiler.training_problems(backward, workload, target, backend)
        except TargetError as error:
            return str(error)
        except UnsupportedError as error:
            problems = list(error.diagnostics)
        if problems:
            return "; ".join(f"{one.span}: {one.message}" for one in problems)
        plan = functools.cache(lambda: hoist(backward.plan))
        ordered = replace(workload, unordered=False)
        made: dict[tuple[str, Bucket], Any] = {}

        def forward(sizes: Sizes) -> Kernel:
            if not workload.saved:
                return self.kernel(widths, ordered, target, sizes)
            config = self._config("forward", (), widths, ordered, target, sizes, lambda _: plan())
            key = self._training_key("forward", backward, widths, ordered, target, config)
            return cache.kernels.get(key, backend, lambda: backend.build(plan(), ordered, target, config))

        def pullback(sizes: Sizes) -> BackwardKernel:
            wants = tuple(sorted({part.name for part in backward.contributions}))
            config = self._config("backward", wants, widths, workload, target, sizes, lambda _: backward)
            key = self._training_key("backward", backward, widths, workload, target, config)
            return cache.kernels.get_backward(
                key, backend, lambda: backend.build_backward(backward, workload, target, config)
            )

        def once(what: str, make: Callable[[Sizes], Any]) -> Callable[[Sizes], Any]:
            def kept(sizes: Sizes) -> Any:
                key = what, bucket_of(sizes)
                if key not in made:
                    made[key] = make(sizes)
                return made[key]

            return kept

        return Training(backward, once("forward", forward), once("backward", pullback))

    def _config(
        self,
        direction: Direction,
        wants: tuple[str, ...],
        widths: Widths,
        workload: Workload,
        target: Target,
        sizes: Sizes,
        subject: Callable[[Widths], Plan | Backward],
    ) -> Config:
        """What the chooser says of a kernel."""
        backend = backend_for(target, self._backend)
        if self.program.listed is not None:  # an attention within another: there is no record of it
            return backend.space(subject(widths), workload, target, sizes).default
        return self._choose(
            Request(
                self.program,
                self._meaning,
                direction,
                wants,
                widths,
                workload,
                target,
                backend,
                sizes,
                lambda: subject(widths),
            )
        )

    def _training_key(
        self, what: str, backward: Backward, widths: Widths, workload: Workload, target: Target, config: Config
    ) -> str:
        """Spellings of one meaning share no kernels here: states and results have names, and an order."""
        from attnc.ir.printer import print_program

        backend = backend_for(target, self._backend)
        results = [result.name for result in backward.results] if what == "backward" else []
        return cache.key_of(
            what,
            print_program(self.program),
            results,
            widths,
            dict(config),
            asdict(workload),
            str(target),
            backend.name,
            backend.toolchain(target),
        )

    def _derived(self, widths: Widths, lse: bool) -> Backward:
        from attnc.ir.printer import print_program

        if (widths, lse) not in self._backwards:

            def derive() -> Backward:
                from attnc import compiler

                return compiler.derive_backward(compiler.specialize_program(self.program, widths), lse)

            key = cache.key_of("derived", print_program(self.program), widths, lse)
            self._backwards[widths, lse] = cache.remember(key, derive)
        return self._backwards[widths, lse]

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
