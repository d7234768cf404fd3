"""Built or loaded kernels for a GPU: they pack the arguments of a call, and are saved as machine code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnc.backends.protocol import Target
from attnc.backends.tvm.arguments import SIZES, Layout
from attnc.backends.tvm.cuda.launches import Launch
from attnc.backends.tvm.cuda.nvcc import Report
from attnc.backends.tvm.kernel import TORCH, Map, adjacent
from attnc.templates.tvm.head import HEAD

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from attnc.backends.driver import Driver

CODE, SOURCE = "kernels.cubin", "kernels.cu"
FORMAT = 1

Start = Callable[[int, int, Sequence[int], "torch.device"], None]
"""Starts a launch by number with so many blocks, on arguments at addresses."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a kernel is made of, and a bundle holds of it.

    Attributes:
        target: the machine it is for.
        layout: of the words of a call; each kernel takes all but their head as arguments.
        maps: the tensors of token maps.
        launches: the kernels in order.
        reports: what the assembler says of each.
        missing: why there is no machine code; empty if there is.
    """

    target: Target
    layout: Layout
    maps: tuple[Map, ...]
    launches: tuple[Launch, ...]
    reports: Mapping[str, Report] = field(default_factory=dict)
    missing: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "cuda": self.target.arch,
            "layout": asdict(self.layout),
            "maps": [asdict(one) for one in self.maps],
            "launches": [asdict(one) for one in self.launches],
            "reports": {name: asdict(report) for name, report in self.reports.items()},
            "missing": self.missing,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parts:
        """What :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it did not write this.
        """
        if data["format"] != FORMAT:
            raise ValueError(f"kernels of format {data['format']}, this version reads format {FORMAT}")
        layout = data["layout"]
        return cls(
            Target("cuda", data["cuda"]),
            Layout(
                tuple(layout["extents"]), layout["parameters"], tuple((name, rank) for name, rank in layout["tensors"])
            ),
            tuple(Map(tuple(one["dims"]), one["dtype"]) for one in data["maps"]),
            tuple(
                Launch(
                    one["function"],
                    one["threads"],
                    one["shared"],
                    tuple((tuple(names), by) for names, by in one["grid"]),
                )
                for one in data["launches"]
            ),
            {name: Report(**fields) for name, fields in data["reports"].items()},
            data["missing"],
        )


class CudaKernel:
    """Kernels of one plan on a GPU (:class:`attnc.backends.protocol.Kernel`); ``code`` is a cubin, or nothing."""

    def __init__(self, parts: Parts, code: bytes, source: str) -> None:
        self.parts, self._code, self._source = parts, code, source
        self._driver: Driver | None = None
        self._zeros: dict[Any, Tensor] = {}
        self.start: Start = self._start

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
        """See :meth:`attnc.backends.protocol.Kernel.run`.

        Raises:
            OSError: there is no machine code.
            SizeError: a size is beyond what the kernels count with.
            DriverError: the tensors are not on the GPU that the kernels are for.
        """
        import torch

        if out.numel() == 0:
            return
        sizes = dict(zip(SIZES, (*q.shape[:2], k.shape[1], q.shape[2], k.shape[2]), strict=True))
        plain = out.stride(-1) == 1 or out.shape[-1] == 1
        target = out if plain else torch.empty(out.shape, dtype=out.dtype, device=out.device)
        own = [
            torch.empty(
                [sizes[d] if isinstance(d, str) else d for d in one.dims],
                dtype=getattr(torch, TORCH[one.dtype]),
                device=q.device,
            )
            for one in self.parts.maps
        ]
        given = [*map(adjacent, (q, k, v)), target, *([] if lse is None else [lse]), *map(adjacent, inputs), *own]
        if q.device not in self._zeros:
            self._zeros[q.device] = torch.zeros(64, dtype=torch.uint8, device=q.device)
        zeros = self._zeros[q.device].data_ptr()
        words = self.parts.layout.pack(list(sizes.values()), extents, given, parameters, zeros)[HEAD:]
        held = (ctypes.c_int64 * len(words))(*words)
        first = ctypes.addressof(held)
        places = [first + 8 * n for n in range(len(words))]
        for number, launch in enumerate(self.parts.launches):
            if blocks := launch.blocks(sizes):
                self.start(number, blocks, places, q.device)
        if target is not out:
            out.copy_(target)

    def _start(self, number: int, blocks: int, places: Sequence[int], device: torch.device) -> None:
        if self._driver is None:
            from attnc.backends.driver import Driver, Program

            if not self._code:
                raise OSError(f"these kernels are CUDA source alone: {self.parts.missing}")
            programs = [
                Program(self._code, launch.function, launch.shared, launch.threads) for launch in self.parts.launches
            ]
            self._driver = Driver(self.parts.target, programs)
        self._driver.demand(device)
        self._driver.start(number, blocks, places, device)

    @property
    def texts(self) -> Mapping[str, str]:
        """The CUDA source, and why there is no more if there is not."""
        note = {"missing.txt": self.parts.missing + "\n"} if self.parts.missing else {}
        return ({SOURCE: self._source} if self._source else {}) | note

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the machine code, or the source where there is none."""
        if self._code:
            (folder / CODE).write_bytes(self._code)
        else:
            (folder / SOURCE).write_text(self._source, encoding="utf-8")
        return self.parts.to_json()


def load_kernel(folder: Path, manifest: Mapping[str, Any]) -> CudaKernel:
    """What :meth:`CudaKernel.save` wrote, and machine code that was made of it since.

    Raises:
        KeyError, TypeError, ValueError: the manifest is of another format, or damaged.
        OSError: the code is not there.
    """
    parts = Parts.from_json(manifest)
    if parts.missing and not (folder / CODE).exists():
        return CudaKernel(parts, b"", (folder / SOURCE).read_text(encoding="utf-8"))
    return CudaKernel(parts, (folder / CODE).read_bytes(), "")
