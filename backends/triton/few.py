"""A kernel that is two: one for calls with few rows, which splits the keys, and one for all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from attnc.backends.protocol import Kernel, Workload
from attnc.backends.triton import kernel
from attnc.backends.triton.call import processors_of
from attnc.backends.triton.recipe import Recipe
from attnc.backends.triton.rewrites import writes_output
from attnc.plan import Plan

FEW = 512
"""Rows of a group of heads up to which splitting the keys may pay."""


def has_few_rows(sizes: Mapping[str, int]) -> bool:
    """Whether calls of sizes ``B H G M N`` may be worth splitting; not where sizes are unknown."""
    return bool(sizes) and sizes["M"] * sizes["H"] <= FEW * sizes["G"]


def can_split(plan: Plan, workload: Workload) -> bool:
    """Whether partial results of a plan can be combined by its online normaliser: one pass, which writes the output.

    Forwards of a training step save states, have many rows, and are not split.
    """
    return len(plan.passes) == 1 and writes_output(plan.output, plan.passes[0]) and not workload.saved


class _Kernel(Kernel, Protocol):
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class FewRows:
    """``few`` for calls whose keys its recipe wants to split, ``many`` for all others."""

    many: _Kernel
    few: _Kernel

    @property
    def recipe(self) -> Recipe:
        """That of the kernel for calls with many rows."""
        return self.many.recipe

    @property
    def texts(self) -> Mapping[str, str]:
        return {**self.many.texts, **{f"few_{name}": text for name, text in self.few.texts.items()}}

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
        """As :meth:`attnc.backends.protocol.Kernel.run`."""
        (batch, heads, rows, _), (key_heads, keys) = q.shape, k.shape[1:3]
        rule = self.few.recipe.split
        assert rule is not None, "the kernel for few rows splits"
        sizes = {"B": batch, "H": heads, "G": key_heads, "M": rows, "N": keys}
        chosen = self.few if rule.parts(sizes, processors_of(q.device)) else self.many
        chosen.run(q, k, v, inputs, parameters, extents, out, lse, saved)

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Both, each in a folder of its own."""
        entries = {}
        for name, made in (("many", self.many), ("few", self.few)):
            (folder / name).mkdir()
            entries[name] = made.save(folder / name)
        return entries


def load_kernel(folder: Path, manifest: Mapping[str, Any]) -> Kernel:
    """The kernel that was saved, of one part or two.

    Raises:
        ValueError: the manifest is of another format, or damaged.
    """
    if "many" not in manifest:
        return kernel.load_kernel(folder, manifest)
    many, few = (kernel.load_kernel(folder / name, manifest[name]) for name in ("many", "few"))
    return FewRows(many, few)
