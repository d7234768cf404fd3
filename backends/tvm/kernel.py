"""Built or loaded kernels: they pack the arguments of a call, and are saved as shared libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnc.backends.tvm.arguments import KEY_PARTS, PARTS, Layout
from attnc.backends.tvm.launch import launch
from attnc.backends.tvm.link import Code
from attnc.backends.tvm.machine import flags, runs_here
from attnc.templates.tvm.head import key_parts_of, parts_of

if TYPE_CHECKING:
    from torch import Tensor

TORCH = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64", "bool": "bool"}


@dataclass(frozen=True, slots=True)
class Map:
    """The tensor a token map writes: its dimensions, each a size by name or a number, and its dtype."""

    dims: tuple[str | int, ...]
    dtype: str


class Compiled:
    """Compiled code with the layout of its arguments, and the tensors that it needs besides those of a call."""

    def __init__(self, code: Code, layout: Layout, maps: tuple[Map, ...], arch: str) -> None:
        self._code, self._layout, self._maps, self._arch = code, layout, maps, arch
        self._function = code.function() if runs_here(arch) else None

    def _call(
        self, q: Tensor, k: Tensor, extents: Sequence[int], tensors: Sequence[Tensor], numbers: Sequence[float]
    ) -> None:
        """Call the code on the tensors of a call, in the order of the layout without its own ones."""
        import torch

        if self._function is None:
            raise OSError(f"this kernel is for the processor {self._arch}")
        sizes = {"B": q.shape[0], "H": q.shape[1], "G": k.shape[1], "M": q.shape[2], "N": k.shape[2]}
        heads = sizes["B"] * sizes["H"]
        known = {**sizes, PARTS: parts_of(heads), KEY_PARTS: key_parts_of(heads, sizes["M"], sizes["N"])}
        own = [
            torch.empty([known[d] if isinstance(d, str) else d for d in m.dims], dtype=getattr(torch, TORCH[m.dtype]))
            for m in self._maps
        ]
        words = self._layout.pack(list(sizes.values()), extents, [*tensors, *own], numbers)
        launch(self._function, words, self._layout.phases, self._layout.room)

    @property
    def texts(self) -> Mapping[str, str]:
        """The kernel as TIR and as assembly."""
        return self._code.texts()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the kernel as a shared library, or as an object file that its machine links when it loads it.

        Raises:
            OSError: there is no linker, or it failed.
        """
        return {
            "code": self._code.write(folder),
            "layout": asdict(self._layout),
            "maps": [asdict(m) for m in self._maps],
            "arch": self._arch,
            "flags": list(flags()),
        }


class CpuKernel(Compiled):
    """Compiled code for one plan on a CPU (:class:`attnc.backends.protocol.Kernel`)."""

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
        """See :meth:`attnc.backends.protocol.Kernel.run`."""
        import torch

        written = [out, *([] if lse is None else [lse]), *saved]
        if any(tensor.numel() == 0 for tensor in written):
            return
        target = out if out.stride(-1) == 1 or out.shape[-1] == 1 else torch.empty(out.shape, dtype=out.dtype)
        tensors = [*map(adjacent, (q, k, v)), target, *written[1:], *map(adjacent, inputs)]
        self._call(q, k, extents, tensors, parameters)
        if target is not out:
            out.copy_(target)


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

        if 0 in (*q.shape[:3], *k.shape[1:3]):
            for result in results:
                result.zero_()
            return
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        targets = [x if x.dtype == wide and x.is_contiguous() else torch.empty(x.shape, dtype=wide) for x in results]
        for number in self._scattered:
            targets[number].zero_()
        self._call(q, k, extents, [*map(adjacent, (q, k, v, *inputs, *reads)), *targets], parameters)
        for result, target in zip(results, targets, strict=True):
            if target is not result:
                result.copy_(target)

    def save(self, folder: Path) -> dict[str, Any]:
        """As :meth:`Compiled.save`."""
        return {**super().save(folder), "scattered": list(self._scattered)}


def adjacent(x: Tensor) -> Tensor:
    """``x``, or a copy where elements of its last dimension do not lie side by side."""
    return x if x.dim() == 0 or x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()
