"""A built or loaded kernel: packs the arguments of a call, and is saved as a shared library."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnc.backends.tvm.arguments import Layout
from attnc.backends.tvm.link import Code
from attnc.backends.tvm.machine import flags
from attnc.backends.tvm.runtime import set_threads

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY = "kernel.so"
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
        self._function: Callable[[Any, Any], Any] | None = code.function() if not arch else None

    def _call(
        self, sizes: dict[str, int], extents: Sequence[int], tensors: Sequence[Tensor], numbers: Sequence[float]
    ) -> None:
        """Call the code on the tensors of a call, in the order of the layout without its own ones."""
        import torch

        if self._function is None:
            raise OSError(f"this kernel is for the processor {self._arch}")
        own = [
            torch.empty([sizes[d] if isinstance(d, str) else d for d in m.dims], dtype=getattr(torch, TORCH[m.dtype]))
            for m in self._maps
        ]
        integers, reals = self._layout.pack(list(sizes.values()), extents, [*tensors, *own], numbers)
        set_threads(torch.get_num_threads())
        self._function(ctypes.c_void_p(ctypes.addressof(integers)), ctypes.c_void_p(ctypes.addressof(reals)))

    @property
    def texts(self) -> Mapping[str, str]:
        """The kernel as TIR and as assembly."""
        return self._code.texts()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the kernel as a shared library.

        Raises:
            OSError: there is no linker, or it failed.
        """
        shutil.copyfile(self._code.library(), folder / LIBRARY)
        return {
            "library": LIBRARY,
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

        sizes = sizes_of(q, k)
        written = [out, *([] if lse is None else [lse]), *saved]
        if any(tensor.numel() == 0 for tensor in written):
            return
        target = out if out.stride(-1) == 1 or out.shape[-1] == 1 else torch.empty(out.shape, dtype=out.dtype)
        tensors = [*map(adjacent, (q, k, v)), target, *written[1:], *map(adjacent, inputs)]
        self._call(sizes, extents, tensors, parameters)
        if target is not out:
            out.copy_(target)


def sizes_of(q: Tensor, k: Tensor) -> dict[str, int]:
    """``B H G M N`` of a call."""
    return {"B": q.shape[0], "H": q.shape[1], "G": k.shape[1], "M": q.shape[2], "N": k.shape[2]}


def adjacent(x: Tensor) -> Tensor:
    """``x``, or a copy where elements of its last dimension do not lie side by side."""
    return x if x.dim() == 0 or x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()
