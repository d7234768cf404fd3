"""A backend whose kernels are the reference, so that everything above backends can be tested without a compiler."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gradient_interpreter import execute, save
from torch import Tensor

from attnc import library, targets
from attnc.analyse.gradient.backward import Backward
from attnc.analyse.lower import stream_program
from attnc.analyse.ranking import Ranking
from attnc.backends.protocol import Choice, Config, Router, Space, Target, Unsupported, Workload
from attnc.ir.nodes import Apply
from attnc.ir.program import Program
from attnc.ir.traverse import postorder
from attnc.plan import Plan
from attnc.reference import evaluate
from attnc.reference.interpreter import Run

NOTHING: Config = {}


class FakeKernel:
    """Runs the program of a plan. ``runs`` counts the calls."""

    def __init__(self, plan: Plan, saved: tuple[str, ...]) -> None:
        self.plan = plan
        self.saved = saved
        self.runs = 0

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
        self.runs += 1
        program = self.plan.program
        arguments = _named(program, inputs, parameters, extents)
        result = evaluate(program, q, k, v, *arguments, return_lse=lse is not None)
        if lse is not None:
            result, rows = result
            lse.copy_(rows)
        out.copy_(result)
        assert len(saved) == len(self.saved)
        if saved:
            named, numbers, sizes = arguments
            save(Run(program, (q, k, v), named, numbers, sizes, torch.float64), self.plan, named)
            for name, x in zip(self.saved, saved, strict=True):
                x.copy_(named[f"saved_{name}"])

    @property
    def texts(self) -> Mapping[str, str]:
        return {"kernel.py": "# the reference\n", "kernel.s": "; nothing\n"}

    def save(self, folder: Path) -> Mapping[str, Any]:
        (folder / "plan.pickle").write_bytes(pickle.dumps((self.plan, self.saved)))
        return {"file": "plan.pickle"}


class FakeBackwardKernel:
    """Runs the steps of a backward in float64. ``runs`` counts the calls."""

    def __init__(self, backward: Backward) -> None:
        self.backward = backward
        self.runs = 0

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
        self.runs += 1
        program = self.backward.plan.program
        named, numbers, sizes = _named(program, inputs, parameters, extents)
        run = Run(program, (q, k, v), named, numbers, sizes, torch.float64)
        named |= {source.name: x.double() for source, x in zip(self.backward.reads, reads, strict=True)}
        execute(self.backward, run, named)
        for source, x in zip(self.backward.results, results, strict=True):
            assert x.shape == named[source.name].shape
            x.copy_(named[source.name])

    @property
    def texts(self) -> Mapping[str, str]:
        return {}

    def save(self, folder: Path) -> Mapping[str, Any]:
        (folder / "backward.pickle").write_bytes(pickle.dumps(self.backward))
        return {"file": "backward.pickle"}


def _named(
    program: Program, inputs: Sequence[Tensor], parameters: Sequence[float], extents: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, int]]:
    return (
        {source.name: x for source, x in zip(program.inputs, inputs, strict=True)},
        {parameter.name: x for parameter, x in zip(program.parameters, parameters, strict=True)},
        dict(zip(program.extents, extents, strict=True)),
    )


class FakeBackend:
    """Cannot do ``tanh`` unless told to, so that there is something that it cannot do."""

    name = "fake"
    codegen = 1
    spaces = 1
    families: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.built: list[Workload] = []
        self.configs: list[Config] = []
        self.loaded = 0
        self.backwards: list[FakeBackwardKernel] = []
        self.refused: tuple[str, ...] = ("tanh",)

    def problems(self, plan: Plan, workload: Workload, target: Target) -> Sequence[Unsupported]:
        nodes = postorder(plan.mask, plan.output, *(term.term for walk in plan.passes for term in walk.accumulators))
        return [
            Unsupported(f"there is no `{node.op}`", node, "use something else")
            for node in nodes
            if isinstance(node, Apply) and node.op in self.refused
        ]

    def build(self, plan: Plan, workload: Workload, target: Target, config: Config = NOTHING) -> FakeKernel:
        self.built.append(workload)
        self.configs.append(config)
        return FakeKernel(stream_program(plan.program, keep_detach=True), workload.saved)

    def space(self, subject: Plan | Backward, workload: Workload, target: Target, sizes: Mapping[str, int]) -> Space:
        return Space((Choice("tile", (16, 32, 64)), Choice("way", ("up", "down"))), {"tile": 16, "way": "up"})

    def rejection(self, kernel: Any, target: Target) -> str | None:
        return None

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> FakeKernel:
        self.loaded += 1
        return FakeKernel(*pickle.loads((folder / manifest["file"]).read_bytes()))

    def backward_problems(self, backward: Backward, workload: Workload, target: Target) -> Sequence[Unsupported]:
        return []

    def build_backward(
        self, backward: Backward, workload: Workload, target: Target, config: Config = NOTHING
    ) -> FakeBackwardKernel:
        self.backwards.append(FakeBackwardKernel(backward))
        return self.backwards[-1]

    def load_backward(self, folder: Path, manifest: Mapping[str, Any]) -> FakeBackwardKernel:
        self.loaded += 1
        return FakeBackwardKernel(pickle.loads((folder / manifest["file"]).read_bytes()))

    def router_problems(self, ranking: Ranking, workload: Workload, target: Target) -> Sequence[str]:
        return ("kernels choose on GPUs alone",)

    def build_router(self, ranking: Ranking, workload: Workload, target: Target) -> Router:
        raise NotImplementedError("what has problems is not built")

    def load_router(self, folder: Path, manifest: Mapping[str, Any]) -> Router:
        raise NotImplementedError("what is not built is not loaded")

    def regroups(self, plan: Plan) -> bool:
        return False

    def sums_groups(self, workload: Workload, target: Target) -> bool:
        return False

    def toolchain(self, target: Target) -> str:
        return json.dumps({"fake": 1})


_numbers = itertools.count()


@contextmanager
def installed(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeBackend]:
    """Serve every target by a fake backend, with an empty cache on disk and in memory."""
    from attnc.cache import kernels

    backend = FakeBackend()
    patch.setitem(targets.BACKENDS, "fake", lambda: backend)
    patch.setattr(targets, "DEFAULT_BACKEND", dict.fromkeys(targets.DEFAULT_BACKEND, "fake"))
    patch.setattr(targets, "_made", {})
    patch.setattr(library, "_registered", {})
    patch.setattr(library, "NAMESPACE", f"attnc_fake{next(_numbers)}")  # the real one may hold the same names already
    patch.setattr(library, "_library", torch.library.Library(library.NAMESPACE, "FRAGMENT"))
    patch.setenv("ATTNC_CACHE_DIR", str(cache))
    kernels.clear()
    yield backend
    kernels.clear()
