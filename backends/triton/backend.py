"""The backend for GPUs: plans to Triton kernels."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attnc.analyse.gradient.backward import Backward
from attnc.analyse.key_ranking import KeyRanking
from attnc.analyse.ranking import Ranking
from attnc.backends.protocol import (
    BackwardKernel,
    Choice,
    Config,
    Kernel,
    Router,
    Selector,
    Space,
    Target,
    Unsupported,
    Workload,
)
from attnc.plan import Plan

if TYPE_CHECKING:
    from attnc.backends.driver import Program
    from attnc.backends.triton.assembly import Lowered
    from attnc.backends.triton.compiling import Binary, Compiled
    from attnc.backends.triton.compiling_backward import CompiledBackward
    from attnc.backends.triton.kernel import DeviceBackward, DeviceKernel
    from attnc.backends.triton.recipe import Recipe
    from attnc.backends.triton.report import Report


class TritonBackend:
    """See :class:`attnc.backends.protocol.Backend`. With ``TRITON_INTERPRET=1`` kernels run on CPU tensors."""

    name = "triton"
    codegen = 4
    spaces = 7
    families: tuple[str, ...] = ("triton", "hopper")

    def problems(self, plan: Plan, workload: Workload, target: Target) -> Sequence[Unsupported]:
        from attnc.backends.triton.support import find_problems

        return tuple(find_problems(plan, workload, _compiled_for(target)))

    def build(self, plan: Plan, workload: Workload, target: Target, config: Config = MappingProxyType({})) -> Kernel:
        from attnc.backends.triton.interpreter import is_interpreting

        return _interpreted(plan, workload) if is_interpreting() else _compiled(plan, workload, target, config)

    def space(self, subject: Plan | Backward, workload: Workload, target: Target, sizes: Mapping[str, int]) -> Space:
        from attnc.backends.triton.interpreter import is_interpreting
        from attnc.backends.triton.space import space_of

        program = (subject if isinstance(subject, Plan) else subject.plan).program
        if program.listed is not None:
            from attnc.backends.triton.configs import FEW_HEADS, MANY_HEADS, heads_for

            return Space((Choice("heads", (FEW_HEADS, MANY_HEADS)),), {"heads": heads_for(sizes)})
        return Space() if is_interpreting() else space_of(subject, workload, target, sizes)

    def rejection(self, kernel: Kernel | BackwardKernel, target: Target) -> str | None:
        from attnc.backends.triton.space import rejection

        return rejection(kernel, target)

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> Kernel:
        from attnc.backends.triton.few import load_kernel

        return load_kernel(folder, manifest)

    def backward_problems(self, backward: Backward, workload: Workload, target: Target) -> Sequence[Unsupported]:
        from attnc.backends.triton.support import find_backward_problems

        return tuple(find_backward_problems(backward, workload, _compiled_for(target)))

    def sums_groups(self, workload: Workload, target: Target) -> bool:
        """Not where kernels for Hopper may be chosen, which have no registers for it."""
        return target.arch != "sm_90" or workload.dtype not in ("bf16", "f16")

    def build_backward(
        self, backward: Backward, workload: Workload, target: Target, config: Config = MappingProxyType({})
    ) -> BackwardKernel:
        from attnc.backends.triton.interpreter import is_interpreting

        if is_interpreting():
            return _interpreted_backward(backward, workload)
        return _compiled_backward(backward, workload, target, config)

    def load_backward(self, folder: Path, manifest: Mapping[str, Any]) -> BackwardKernel:
        from attnc.backends.triton.kernel import load_backward

        return load_backward(folder, manifest)

    def selector_problems(self, ranking: KeyRanking, workload: Workload, target: Target) -> Sequence[Unsupported]:
        from attnc.backends.triton.choosing import find_problems

        return tuple(find_problems(ranking, workload, _compiled_for(target)))

    def build_selector(self, ranking: KeyRanking, workload: Workload, target: Target) -> Selector:
        from attnc.backends.triton.choosing import INTERPRETED, lower_key_ranking
        from attnc.backends.triton.compiling import compile_key_ranking
        from attnc.backends.triton.interpreter import Interpreter, is_interpreting
        from attnc.backends.triton.kernel import DeviceSelector, InterpretedSelector
        from attnc.backends.triton.module import write_source

        if is_interpreting():
            name, lowered = ranking.program.name, lower_key_ranking(ranking, workload, INTERPRETED, "f32")
            texts = {"slots.py": write_source(name, lowered.functions)}
            return InterpretedSelector(lowered.recipe, texts, Interpreter(name, lowered))
        made = compile_key_ranking(ranking, workload, target)
        return DeviceSelector(*_ready(made.lowered, made.source, made.binaries, target))

    def load_selector(self, folder: Path, manifest: Mapping[str, Any]) -> Selector:
        from attnc.backends.triton.kernel import load_selector

        return load_selector(folder, manifest)

    def router_problems(self, ranking: Ranking, workload: Workload, target: Target) -> Sequence[str]:
        from attnc.backends.triton.router import find_reasons

        return tuple(find_reasons(ranking, workload, _compiled_for(target)))

    def build_router(self, ranking: Ranking, workload: Workload, target: Target) -> Router:
        from attnc.backends.triton.interpreter import is_interpreting

        return _interpreted_router(ranking, workload) if is_interpreting() else _router(ranking, workload, target)

    def load_router(self, folder: Path, manifest: Mapping[str, Any]) -> Router:
        from attnc.backends.triton.kernel import load_router

        return load_router(folder, manifest)

    def regroups(self, plan: Plan) -> bool:
        from attnc.backends.triton.regroup import regroupable, scatters

        return regroupable(plan) is not None and not scatters(plan)

    def toolchain(self, target: Target) -> str:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # asking Triton would import it
        return f"triton {importlib.metadata.version('triton')}" + (" interpreted" if interpreted else "")


def _compiled_for(target: Target) -> Target:
    """The target; in the interpreter, tensors of the CPU are seen by what runs on a GPU."""
    from attnc.backends.triton.interpreter import is_interpreting

    return Target("cuda", "sm_90") if target.kind == "cpu" and is_interpreting() else target


def _interpreted(plan: Plan, workload: Workload) -> Kernel:
    from attnc.backends.triton.configs import INTERPRETER, INTERPRETER_GATHER, INTERPRETER_REGROUP, INTERPRETER_SPLIT
    from attnc.backends.triton.configs import Config as Tile
    from attnc.backends.triton.few import FewRows, can_split
    from attnc.backends.triton.interpreter import Interpreter
    from attnc.backends.triton.kernel import InterpretedKernel
    from attnc.backends.triton.lower import lower_plan_to_recipe
    from attnc.backends.triton.module import write_source
    from attnc.backends.triton.regroup import regroupable

    name = plan.program.name

    def made(config: Tile) -> InterpretedKernel:
        lowered = lower_plan_to_recipe(plan, workload, config, "f32")
        texts = {"slots.py": write_source(name, lowered.functions)}
        return InterpretedKernel(lowered.recipe, texts, Interpreter(name, lowered))

    if plan.program.listed is not None:
        return made(INTERPRETER_GATHER)
    if regroupable(plan) is not None:
        return made(INTERPRETER_REGROUP)
    many = made(INTERPRETER)
    return FewRows(many, made(INTERPRETER_SPLIT)) if can_split(plan, workload) else many


def _compiled(plan: Plan, workload: Workload, target: Target, config: Config) -> Kernel:
    """A kernel for few rows, where there is one, and one for all others; ``config`` is of either."""
    from attnc.backends.triton.choice import choose
    from attnc.backends.triton.compiling import compile_few, compile_plan, compile_with
    from attnc.backends.triton.configs import FEW_HEADS
    from attnc.backends.triton.few import FewRows, can_split
    from attnc.backends.triton.space import tile_of

    if plan.program.listed is not None:
        return device_kernel(compile_plan(plan, workload, target, int(config.get("heads", FEW_HEADS))), target)
    wanted = compile_with(plan, workload, target, tile_of(config)) if config else None
    splits = wanted is not None and wanted.lowered.recipe.split is not None
    few = wanted if splits else compile_few(plan, workload, target) if can_split(plan, workload) else None
    many = wanted if wanted is not None and not splits else choose(plan, workload, target)
    made = device_kernel(many, target)
    return made if few is None else FewRows(made, device_kernel(few, target))


def _interpreted_backward(backward: Backward, workload: Workload) -> BackwardKernel:
    from attnc.backends.triton.configs import INTERPRETER, INTERPRETER_GATHER, INTERPRETER_REGROUP
    from attnc.backends.triton.interpreter import Interpreter
    from attnc.backends.triton.kernel import InterpretedBackward
    from attnc.backends.triton.lower_backward import lower_backward_to_recipe
    from attnc.backends.triton.module import write_source
    from attnc.backends.triton.regroup import regroupable

    config = INTERPRETER if regroupable(backward) is None else INTERPRETER_REGROUP
    if backward.plan.program.listed is not None:
        config = INTERPRETER_GATHER
    lowered = lower_backward_to_recipe(backward, workload, dict.fromkeys(("keys", "rows", "pairs"), config), "f32")
    name = backward.plan.program.name
    texts = {"slots.py": write_source(name, lowered.functions)}
    return InterpretedBackward(lowered.recipe, texts, Interpreter(name, lowered))


def _compiled_backward(backward: Backward, workload: Workload, target: Target, config: Config) -> BackwardKernel:
    from attnc.backends.triton.compiling_backward import compile_backward, compile_with
    from attnc.backends.triton.configs import FEW_HEADS
    from attnc.backends.triton.space import tiles_of

    if backward.plan.program.listed is not None:
        return device_backward(
            compile_backward(backward, workload, target, int(config.get("heads", FEW_HEADS))), target
        )
    if config:
        return device_backward(compile_with(backward, workload, target, tiles_of(config)), target)
    return device_backward(compile_backward(backward, workload, target), target)


def device_backward(made: CompiledBackward, target: Target) -> DeviceBackward:
    """What was compiled, ready to run."""
    from attnc.backends.triton.kernel import DeviceBackward

    target, recipe, programs, texts, reports = _ready(made.lowered, made.source, made.binaries, target)
    return DeviceBackward(target, recipe, programs, {**texts, "choice.txt": f"{made.note}\n"}, reports)


def _interpreted_router(ranking: Ranking, workload: Workload) -> Router:
    from attnc.backends.triton.configs import INTERPRETER
    from attnc.backends.triton.interpreter import Interpreter
    from attnc.backends.triton.kernel import InterpretedRouter
    from attnc.backends.triton.module import write_source
    from attnc.backends.triton.router import lower_ranking_to_recipe

    name = ranking.program.name
    lowered = lower_ranking_to_recipe(ranking, workload, INTERPRETER, "f32")
    texts = {"slots.py": write_source(name, lowered.functions)}
    return InterpretedRouter(lowered.recipe, texts, Interpreter(name, lowered))


def _router(ranking: Ranking, workload: Workload, target: Target) -> Router:
    from attnc.backends.triton.compiling import compile_ranking
    from attnc.backends.triton.kernel import DeviceRouter

    made = compile_ranking(ranking, workload, target)
    return DeviceRouter(*_ready(made.lowered, made.source, made.binaries, target))


def device_kernel(made: Compiled, target: Target) -> DeviceKernel:
    """What was compiled, ready to run."""
    from attnc.backends.triton.kernel import DeviceKernel

    target, recipe, programs, texts, reports = _ready(made.lowered, made.source, made.binaries, target)
    return DeviceKernel(target, recipe, programs, {**texts, "choice.txt": f"{made.note}\n"}, reports)


def _ready(
    lowered: Lowered, source: str, binaries: Sequence[Binary], target: Target
) -> tuple[Target, Recipe, tuple[Program, ...], Mapping[str, str], Mapping[str, Report]]:
    """The fields of compiled kernels."""
    from attnc.backends.driver import Program

    launches = lowered.recipe.launches
    ending = "ptx" if target.kind == "cuda" else "amdgcn"
    texts = {"slots.py": source}
    texts |= {f"{one.name}.{ending}": binary.assembly for one, binary in zip(launches, binaries, strict=True)}
    programs = tuple(
        Program(binary.code, binary.function, binary.shared, binary.threads, one.resident)
        for one, binary in zip(launches, binaries, strict=True)
    )
    reports = {one.name: binary.report for one, binary in zip(launches, binaries, strict=True)}
    return target, lowered.recipe, programs, texts, reports
