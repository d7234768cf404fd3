"""A backend whose kernels are the reference, so that everything above backends can be tested without a compiler."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnc import library, targets
from attnc.backends.protocol import Target, Unsupported, Workload
from attnc.ir.nodes import Apply
from attnc.ir.printer import print_program
from attnc.ir.program import Program
from attnc.ir.reader import read_program
from attnc.ir.traverse import postorder
from attnc.plan import Plan
from attnc.reference import evaluate


class FakeKernel:
    """Runs the program of a plan. ``runs`` counts the calls."""

    def __init__(self, program: Program) -> None:
        self.program = program
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
    ) -> None:
        self.runs += 1
        named = {source.name: x for source, x in zip(self.program.inputs, inputs, strict=True)}
        numbers = {parameter.name: x for parameter, x in zip(self.program.parameters, parameters, strict=True)}
        sizes = dict(zip(self.program.extents, extents, strict=True))
        result = evaluate(self.program, q, k, v, named, numbers, sizes, return_lse=lse is not None)
        if lse is not None:
            result, rows = result
            lse.copy_(rows)
        out.copy_(result)

    @property
    def texts(self) -> Mapping[str, str]:
        return {"kernel.py": "# the reference\n", "kernel.s": "; nothing\n"}

    def save(self, folder: Path) -> Mapping[str, Any]:
        (folder / "kernel.txt").write_text(print_program(self.program))
        return {"file": "kernel.txt"}


class FakeBackend:
    """Cannot do ``tanh``, so that there is something that it cannot do."""

    name = "fake"

    def __init__(self) -> None:
        self.built: list[Workload] = []
        self.loaded = 0

    def problems(self, plan: Plan, workload: Workload, target: Target) -> Sequence[Unsupported]:
        nodes = postorder(plan.mask, plan.output, *(term.term for walk in plan.passes for term in walk.accumulators))
        return [
            Unsupported("there is no `tanh`", node, "use something else")
            for node in nodes
            if isinstance(node, Apply) and node.op == "tanh"
        ]

    def build(self, plan: Plan, workload: Workload, target: Target) -> FakeKernel:
        self.built.append(workload)
        return FakeKernel(plan.program)

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> FakeKernel:
        self.loaded += 1
        return FakeKernel(read_program((folder / manifest["file"]).read_text()))

    def toolchain(self) -> str:
        return json.dumps({"fake": 1})


@contextmanager
def installed(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeBackend]:
    """Serve every target by a fake backend, with an empty cache on disk and in memory."""
    from attnc.cache import kernels

    backend = FakeBackend()
    patch.setitem(targets.BACKENDS, "fake", lambda: backend)
    patch.setattr(targets, "DEFAULT_BACKEND", dict.fromkeys(targets.DEFAULT_BACKEND, "fake"))
    patch.setattr(targets, "_made", {})
    patch.setattr(library, "_registered", {})
    patch.setattr(library, "_library", torch.library.Library(library.NAMESPACE, "FRAGMENT"))
    patch.setenv("ATTNC_CACHE_DIR", str(cache))
    kernels.clear()
    yield backend
    kernels.clear()
