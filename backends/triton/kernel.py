"""A kernel of this backend: a recipe, and what executes its launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnc.backends.driver import Driver, Program
from attnc.backends.protocol import Target, Unsavable
from attnc.backends.triton.call import Execute, TileLists, run, run_backward, run_router
from attnc.backends.triton.choosing import run_choice
from attnc.backends.triton.launch import Launcher
from attnc.backends.triton.recipe import Recipe, from_json, leaves, to_json
from attnc.backends.triton.report import Report

FORMAT = 3


@dataclass(slots=True)
class _Interpreted:
    """Kernels that run in Triton's interpreter, on tensors of the CPU."""

    recipe: Recipe
    texts: Mapping[str, str]
    execute: Execute
    lists: TileLists = field(default_factory=TileLists)

    def save(self, folder: Path) -> Mapping[str, Any]:
        raise Unsavable("with TRITON_INTERPRET=1 nothing is compiled, so there is nothing to save")


@dataclass(slots=True)
class InterpretedKernel(_Interpreted):
    """A forward."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        extents: Sequence[int],
        out: Tensor,
        lse: Tensor | None,
        saved: Sequence[Tensor] = (),
    ) -> None:
        run(self.recipe, self.execute, self.lists, q, k, v, inputs, parameters, extents, out, lse, saved)


@dataclass(slots=True)
class InterpretedBackward(_Interpreted):
    """A backward."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        extents: Sequence[int],
        reads: Sequence[Tensor],
        results: Sequence[Tensor],
    ) -> None:
        run_backward(self.recipe, self.execute, self.lists, q, k, v, inputs, parameters, extents, reads, results)


@dataclass(slots=True)
class InterpretedRouter(_Interpreted):
    """What chooses."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        extents: Sequence[int],
        numbers: Tensor,
        counts: Tensor,
    ) -> None:
        run_router(self.recipe, self.execute, q, k, inputs, parameters, extents, numbers, counts)


@dataclass(slots=True)
class _OnDevice:
    """Compiled kernels. They can be made and saved anywhere, and run where ``target`` is."""

    target: Target
    recipe: Recipe
    programs: tuple[Program, ...]
    texts: Mapping[str, str]
    reports: Mapping[str, Report]
    lists: TileLists = field(default_factory=TileLists)
    launcher: Launcher = field(init=False)

    def __post_init__(self) -> None:
        values = [flattened(launch.arguments) for launch in self.recipe.launches]
        self.launcher = Launcher(Driver(self.target, self.programs), values)

    def report(self) -> Mapping[str, Report]:
        """What the compilers said of each kernel, by the name of its launch."""
        return self.reports

    def execute_on(self, device: torch.device) -> Execute:
        self.launcher.driver.demand(device)

        def execute(at: int, programs: int, bind: Any) -> None:
            self.launcher.start(at, programs, [bind(value) for value in self.launcher.values[at]], device)

        return execute

    def save(self, folder: Path) -> Mapping[str, Any]:
        ending = "cubin" if self.target.kind == "cuda" else "hsaco"
        saved = []
        for launch, program in zip(self.recipe.launches, self.programs, strict=True):
            file = f"{launch.name}.{ending}"
            (folder / file).write_bytes(program.code)
            saved.append(
                {"file": file, "function": program.function, "shared": program.shared, "threads": program.threads}
            )
        return {
            "format": FORMAT,
            "target": [self.target.kind, self.target.arch],
            "recipe": to_json(self.recipe),
            "programs": saved,
            "reports": {name: asdict(report) for name, report in self.reports.items()},
        }


@dataclass(slots=True)
class DeviceKernel(_OnDevice):
    """A compiled forward."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        extents: Sequence[int],
        out: Tensor,
        lse: Tensor | None,
        saved: Sequence[Tensor] = (),
    ) -> None:
        execute = self.execute_on(q.device)
        with torch.cuda.device(q.device):
            run(self.recipe, execute, self.lists, q, k, v, inputs, parameters, extents, out, lse, saved)


@dataclass(slots=True)
class DeviceBackward(_OnDevice):
    """A compiled backward."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        extents: Sequence[int],
        reads: Sequence[Tensor],
        results: Sequence[Tensor],
    ) -> None:
        execute = self.execute_on(q.device)
        with torch.cuda.device(q.device):
            run_backward(self.recipe, execute, self.lists, q, k, v, inputs, parameters, extents, reads, results)


@dataclass(slots=True)
class DeviceRouter(_OnDevice):
    """What chooses, compiled."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        extents: Sequence[int],
        numbers: Tensor,
        counts: Tensor,
    ) -> None:
        execute = self.execute_on(q.device)
        with torch.cuda.device(q.device):
            run_router(self.recipe, execute, q, k, inputs, parameters, extents, numbers, counts)


def load_router(folder: Path, manifest: Mapping[str, Any]) -> DeviceRouter:
    """What :meth:`DeviceRouter.save` wrote; see :func:`_load`."""
    return DeviceRouter(*_load(folder, manifest))


@dataclass(slots=True)
class InterpretedSelector(_Interpreted):
    """A choice of keys."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        sizes: Mapping[str, int],
        numbers: Tensor,
        counts: Tensor,
    ) -> None:
        run_choice(self.recipe, self.execute, q, k, inputs, parameters, sizes, numbers, counts)


@dataclass(slots=True)
class DeviceSelector(_OnDevice):
    """A compiled choice of keys."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        sizes: Mapping[str, int],
        numbers: Tensor,
        counts: Tensor,
    ) -> None:
        with torch.cuda.device(q.device):
            run_choice(self.recipe, self.execute_on(q.device), q, k, inputs, parameters, sizes, numbers, counts)


def load_kernel(folder: Path, manifest: Mapping[str, Any]) -> DeviceKernel:
    """What :meth:`DeviceKernel.save` wrote; see :func:`_load`."""
    return DeviceKernel(*_load(folder, manifest))


def load_selector(folder: Path, manifest: Mapping[str, Any]) -> DeviceSelector:
    """What :meth:`DeviceSelector.save` wrote; see :func:`_load`."""
    return DeviceSelector(*_load(folder, manifest))


def load_backward(folder: Path, manifest: Mapping[str, Any]) -> DeviceBackward:
    """What :meth:`DeviceBackward.save` wrote; see :func:`_load`."""
    return DeviceBackward(*_load(folder, manifest))


def _load(
    folder: Path, manifest: Mapping[str, Any]
) -> tuple[Target, Recipe, tuple[Program, ...], Mapping[str, str], Mapping[str, Report]]:
    """The fields of saved kernels.

    Raises:
        ValueError: the manifest is of another format, or damaged.
    """
    if manifest.get("format") != FORMAT:
        raise ValueError(f"kernels of format {manifest.get('format')}, this version reads format {FORMAT}")
    try:
        recipe = from_json(manifest["recipe"])
        programs = tuple(
            Program(
                (folder / saved["file"]).read_bytes(),
                saved["function"],
                saved["shared"],
                saved["threads"],
                launch.resident,
            )
            for launch, saved in zip(recipe.launches, manifest["programs"], strict=True)
        )
        reports = {
            name: Report(**{**fields, "kinds": tuple(fields["kinds"])}) for name, fields in manifest["reports"].items()
        }
        target = Target(*manifest["target"])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"the description of the kernels is damaged: {error!r}") from None
    return target, recipe, programs, {}, reports


def flattened(arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """Every run-time argument in the order of the machine code."""
    return tuple(value for tree in arguments.values() for _, value in leaves(tree))
