"""A built or loaded backward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnc.backends.tvm.arguments import Layout
from attnc.backends.tvm.kernel import Compiled, Map, adjacent, sizes_of
from attnc.backends.tvm.link import Code

if TYPE_CHECKING:
    from torch import Tensor


class CpuBackwardKernel(Compiled):
    """Compiled code for one derived backward on a CPU (:class:`attnc.backends.protocol.BackwardKernel`).

    ``scattered`` are the numbers of the results that scatters add to.
    """

    def __init__(
        self, code: Code, layout: Layout, maps: tuple[Map, ...], arch: str, scattered: tuple[int, ...]
    ) -> None:
        super().__init__(code, layout, maps, arch)
        self._scattered = scattered

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
        """See :meth:`attnc.backends.protocol.BackwardKernel.run`."""
        import torch

        sizes = sizes_of(q, k)
        if 0 in sizes.values():
            for result in results:
                result.zero_()
            return
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        targets = [x if x.dtype == wide and x.is_contiguous() else torch.empty(x.shape, dtype=wide) for x in results]
        for number in self._scattered:
            targets[number].zero_()
        tensors = map(adjacent, (q, k, v, *inputs, *reads))
        self._call(sizes, extents, [*tensors, *targets], parameters)
        for result, target in zip(results, targets, strict=True):
            if target is not result:
                result.copy_(target)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the kernel as a shared library.

        Raises:
            OSError: there is no linker, or it failed.
        """
        return {**super().save(folder), "scattered": list(self._scattered)}
