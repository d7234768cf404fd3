"""What happens inside the operator: check the call, find its kernel, run it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from attnc.backends.protocol import Kernel, Target, Workload
from attnc.errors import ArgumentError
from attnc.ir.program import Program
from attnc.signature import Signature, size_value
from attnc.targets import target_of_device
from attnc.validate import DTYPES, check_call, split

Widths = tuple[int, int]
"""Head widths ``(D, E)``."""


class KernelSource(Protocol):
    """Where the kernels of one program come from: the compiler, or a bundle."""

    @property
    def tag(self) -> str:
        """What tells it from other sources for the same program; empty for the compiler with its usual backends."""
        ...

    def kernel(self, widths: Widths, workload: Workload, target: Target) -> Kernel:
        """The kernel for these head widths and element types on ``target``."""
        ...

    def lse_problem(self, widths: Widths) -> str | None:
        """Why there is no log-sum-exp; ``None`` if there is one."""
        ...

    def input_dtypes(self, dtype: str, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """The element types to hand inputs over in, given those of the call: the same, or wider."""
        ...


class Runtime:
    """One program as :class:`attnc.library.Implementation`.

    A kernel is chosen by the target, the head widths and the element types alone, so sizes never compile.
    """

    def __init__(self, program: Program, source: KernelSource) -> None:
        self.program = program
        self.signature = Signature.of(program)
        self._source = source
        self._chosen: dict[tuple[Any, ...], Kernel] = {}

    def run(self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], lse: bool) -> tuple[Tensor, Tensor | None]:
        """Compute ``out [B,H,M,E]`` and, if ``lse``, the log-sum-exp ``[B,H,M]``."""
        sizes = check_call(self.program, self.signature, q, k, v, values)
        self._check_lse(sizes, lse)
        out, rows = self._results(q, sizes, lse)
        if out.numel() == 0:
            return out, rows
        inputs, numbers, _ = split(self.signature, values)
        kernel = self._kernel(q, inputs, sizes, lse)
        with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
            kernel.run(
                q.detach(),
                k.detach(),
                v.detach(),
                self._inputs(q, inputs),
                list(numbers),
                [sizes[name] for name in self.signature.extents],
                out,
                rows,
            )
        return out, rows

    def shapes(self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], lse: bool) -> tuple[Tensor, Tensor | None]:
        """Check the call and return empty tensors like the results."""
        sizes = check_call(self.program, self.signature, q, k, v, values)
        self._check_lse(sizes, lse)
        return self._results(q, sizes, lse)

    def evaluate(
        self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The reference, on checked arguments."""
        from attnc.reference import evaluate

        sizes = check_call(self.program, self.signature, q, k, v, values)
        inputs, numbers, _ = split(self.signature, values)
        result = evaluate(
            self.program,
            q,
            k,
            v,
            {source.name: tensor for source, tensor in zip(self.signature.inputs, inputs, strict=True)},
            {parameter.name: number for parameter, number in zip(self.signature.parameters, numbers, strict=True)},
            {name: sizes[name] for name in self.signature.extents},
            return_lse=lse,
        )
        return result if isinstance(result, tuple) else (result, None)

    def _check_lse(self, sizes: dict[str, int], lse: bool) -> None:
        if lse and (problem := self._source.lse_problem((int(sizes["D"]), int(sizes["E"])))):
            raise ArgumentError("return_lse", problem)

    def _kernel(self, q: Tensor, inputs: Sequence[Tensor], sizes: dict[str, int], lse: bool) -> Kernel:
        dtypes = tuple(DTYPES[x.dtype] for x in inputs)
        key = (q.device, q.dtype, sizes["D"], sizes["E"], dtypes, lse)
        if key not in self._chosen:
            dtype = DTYPES[q.dtype]
            workload = Workload(dtype, self._source.input_dtypes(dtype, dtypes), lse)
            target = target_of_device(q.device.type)
            self._chosen[key] = self._source.kernel((sizes["D"], sizes["E"]), workload, target)
        return self._chosen[key]

    def _inputs(self, q: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = tuple(DTYPES[x.dtype] for x in inputs)
        wanted = self._source.input_dtypes(DTYPES[q.dtype], given)
        return [
            x.detach() if have == want else x.detach().to(_TORCH[want])
            for x, have, want in zip(inputs, given, wanted, strict=True)
        ]

    def _results(self, q: Tensor, sizes: dict[str, int], lse: bool) -> tuple[Tensor, Tensor | None]:
        width = self.program.body.output.width
        assert width is not None
        rows = (sizes["B"], sizes["H"], sizes["M"])
        out = q.new_empty((*rows, size_value(width, sizes)))
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        return out, q.new_empty(rows, dtype=wide) if lse else None


_TORCH = {name: dtype for dtype, name in DTYPES.items()}
