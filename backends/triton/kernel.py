"""A kernel of this backend: a recipe, and what executes its launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from attnc.backends.triton.call import Execute, TileLists, run
from attnc.backends.triton.recipe import Recipe


@dataclass(slots=True)
class InterpretedKernel:
    """Kernels that run in Triton's interpreter."""

    recipe: Recipe
    texts: Mapping[str, str]
    execute: Execute
    lists: TileLists = field(default_factory=TileLists)

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
        run(self.recipe, self.execute, self.lists, q, k, v, inputs, parameters, extents, out, lse)

    def save(self, folder: Path) -> Mapping[str, Any]:
        raise RuntimeError("with TRITON_INTERPRET=1 nothing is compiled, so there is nothing to save")
