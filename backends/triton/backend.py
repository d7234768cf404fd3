"""The backend for GPUs: plans to Triton kernels."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attnc.analyse.gradient.backward import Backward
from attnc.analyse.ranking import Ranking
from attnc.backends.protocol import (
    BackwardKernel,
    Config,
    Kernel,
    Selector,
    Space,
    Target,
    Unsupported,
    Workload,
)
from attnc.plan import Plan

if TYPE_CHECKING:
    from attnc.backends.triton.assembly import Lowered
    from attnc.backends.triton.compiling import Binary, Compiled
    from attnc.backends.triton.driver import Program
    from attnc.backends.triton.kernel import DeviceKernel
    from attnc.backends.triton.recipe import Recipe
    from attnc.backends.triton.report import Report


class TritonBackend:
    """See :class:`attnc.backends.protocol.Backend`. With ``TRITON_INTERPRET=1`` kernels run on CPU tensors."""

    name = "triton"
    codegen = 3
    spaces = 4

    def problems(self, plan: Plan, workload: Workload, target: Target) -> Sequence[Unsupported]:
        from attnc.backends.triton.support import find_problems

        return tuple(find_problems(plan, workload, _compiled_for(target)))

    def build(self, plan: Plan, workload: Workload, target: Target, config: Config = MappingProxyType({})) -> Kernel:
        from attnc.backends.triton.interpreter import is_interpreting

        return _interpreted(plan, workload) if is_interpreting() else _compiled(plan, workload, target, config)

    def space(self, subject: Plan | Backward, workload: Workload, target: Target, sizes: Mapping[str, int]) -> Space:
        from attnc.backends.triton.interpreter import is_interpreting
        from attnc.backends.triton.space import space_of

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

    def selector_problems(self, ranking: Ranking, workload: Workload, target: Target) -> Sequence[Unsupported]:
        from attnc.backends.triton.choosing import find_problems

        return tuple(find_problems(ranking, workload, _compiled_for(target)))

    def build_selector(self, ranking: Ranking, workload: Workload, target: Target) -> Selector:
        from attnc.backends.triton.choosing import INTERPRETED, lower_ranking
        from attnc.backends.triton.compiling import compile_ranking
        from attnc.backends.triton.interpreter import Interpreter, is_interpreting
        from attnc.backends.triton.kernel import DeviceSelector, InterpretedSelector
        from attnc.backends.triton.module import write_source

        if is_interpreting():
            name, lowered = ranking.program.name, lower_ranking(ranking, workload, INTERPRETED, "f32")
            texts = {"slots.py": write_source(name, lowered.functions)}
            return InterpretedSelector(lowered.recipe, texts, Interpreter(name, lowered))
        made = compile_ranking(ranking, workload, target)
        return DeviceSelector(*_ready(made.lowered, made.source, made.binaries, target))

    def load_selector(self, folder: Path, manifest: Mapping[str, Any]) -> Selector:
        from attnc.backends.triton.kernel import load_selector

        return load_selector(folder, manifest)

    def toolchain(self) -> str:
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # asking Triton would import it
        return f"triton {importlib.metadata.version('triton')}" + (" interpreted" if interpreted else "")


def _compiled_for(target: Target) -> Target:
    """The target; in the interpreter, tensors of the CPU are seen by what runs on a GPU."""
    from attnc.backends.triton.interpreter import is_interpreting

    return Target("cuda", "sm_90") if target.kind == "cpu" and is_interpreting() else target


def _interpreted(plan: Plan, workload: Workload) -> Kernel:
    from attnc.backends.triton.configs import INTERPRETER, INTERPRETER_GATHER, INTERPRETER_SPLIT
    from attnc.backends.triton.configs import Config as Tile
    from attnc.backends.triton.few import FewRows, can_split
    from attnc.backends.triton.interpreter import Interpreter
    from attnc.backends.triton.kernel import InterpretedKernel
    from attnc.backends.triton.lower import lower_plan_to_recipe
    from attnc.backends.triton.module import write_source

    name = plan.program.name

    def made(config: Tile) -> InterpretedKernel:
        lowered = lower_plan_to_recipe(plan, workload, config, "f32")
        texts = {"slots.py": write_source(name, lowered.functions)}
        return InterpretedKernel(lowered.recipe, texts, Interpreter(name, lowered))

    if plan.program.listed is not None:
        return made(INTERPRETER_GATHER)
    many = made(INTERPRETER)
    return FewRows(many, made(INTERPRETER_SPLIT)) if can_split(plan, workload) else many


def _compiled(plan: Plan, workload: Workload, target: Target, config: Config) -> Kernel:
    from attnc.backends.triton.choice import choose
    from attnc.backends.triton.compiling import compile_plan, compile_with
    from attnc.backends.triton.configs import FEW_HEADS
    from attnc.backends.triton.few import FewRows
    from attnc.backends.triton.space import tile_of

    if plan.program.listed is not None:
        return device_kernel(compile_plan(plan, workload, target, int(config.get("heads", FEW_HEADS))), target)
    if not config:
        return device_kernel(choose(plan, workload, target), target)
    made = device_kernel(compile_with(plan, workload, target, tile_of(config)), target)
    if made.recipe.split is None:
        return made
    return FewRows(device_kernel(choose(plan, workload, target), target), made)


def _interpreted_backward(backward: Backward, workload: Workload) -> BackwardKernel:
    from attnc.backends.triton.configs import INTERPRETER, INTERPRETER_GATHER
    from attnc.backends.triton.interpreter import Interpreter
    from attnc.backends.triton.kernel import InterpretedBackward
    from attnc.backends.triton.lower_backward import lower_backward_to_recipe
    from attnc.backends.triton.module import write_source

    tile = INTERPRETER if backward.plan.program.listed is None else INTERPRETER_GATHER
    lowered = lower_backward_to_recipe(backward, workload, dict.fromkeys(("keys", "rows", "pairs"), tile), "f32")
    name = backward.plan.program.name
    texts = {"slots.py": write_source(name, lowered.functions)}
    return InterpretedBackward(lowered.recipe, texts, Interpreter(name, lowered))


def _compiled_backward(backward: Backward, workload: Workload, target: Target, config: Config) -> BackwardKernel:
    from attnc.backends.triton.compiling_backward import compile_backward, compile_with
    from attnc.backends.triton.configs import FEW_HEADS
    from attnc.backends.triton.kernel import DeviceBackward
    from attnc.backends.triton.space import tiles_of

    if backward.plan.program.listed is not None:
        made = compile_backward(backward, workload, target, int(config.get("heads", FEW_HEADS)))
    elif config:
        made = compile_with(backward, workload, target, tiles_of(config))
    else:
        made = compile_backward(backward, workload, target)
    target, recipe, programs, texts, reports = _ready(made.lowered, made.source, made.binaries, target)
    return DeviceBackward(target, recipe, programs, {**texts, "choice.txt": f"{made.note}\n"}, reports)


def device_kernel(made: Compiled, target: Target) -> DeviceKernel:
    """What was compiled, ready to run."""
    from attnc.backends.triton.kernel import DeviceKernel

    target, recipe, programs, texts, reports = _ready(made.lowered, made.source, made.binaries, target)
    return DeviceKernel(target, recipe, programs, {**texts, "choice.txt": f"{made.note}\n"}, reports)


def _ready(
    lowered: Lowered, source: str, binaries: Sequence[Binary], target: Target
) -> tuple[Target, Recipe, tuple[Program, ...], Mapping[str, str], Mapping[str, Report]]:
    """The fields of compiled kernels."""
    from attnc.backends.triton.driver import Program
    from attnc.backends.triton.kernel import flattened

    launches = lowered.recipe.launches
    ending = "ptx" if target.kind == "cuda" else "amdgcn"
    texts = {"slots.py": source}
    texts |= {f"{one.name}.{ending}": binary.assembly for one, binary in zip(launches, binaries, strict=True)}
    programs = tuple(
        Program(binary.code, binary.function, binary.shared, binary.threads, flattened(one.arguments), one.resident)
        for one, binary in zip(launches, binaries, strict=True)
    )
    reports = {one.name: binary.report for one, binary in zip(launches, binaries, strict=True)}
    return target, lowered.recipe, programs, texts, reports
