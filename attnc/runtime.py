"""What happens inside the operator: check the call, find its kernel, run it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from attnc.autotune.bucket import bucket_of
from attnc.backends.protocol import Backend, BackwardKernel, Kernel, Router, Selector, Target, Workload
from attnc.errors import ArgumentError, TargetError
from attnc.gradients import Call, gradients, results_for
from attnc.ir.nodes import Kind
from attnc.ir.program import Program
from attnc.signature import Signature, size_value
from attnc.targets import target_of_device
from attnc.validate import DTYPES, check_call, split

if TYPE_CHECKING:
    from attnc.analyse.gradient.backward import Backward
    from attnc.analyse.key_ranking import KeyRanking
    from attnc.analyse.ranking import Ranking

Widths = tuple[int, int]
"""Head widths ``(D, E)``."""
Sizes = Mapping[str, int]
"""``B H G M N``, widths and extents of a call; empty where they are not known yet."""


@dataclass(frozen=True, slots=True)
class Training:
    """A derived backward, its kernel, and that of the forward that saves what it reads.

    Both are made when called, once for a bucket of sizes.
    """

    backward: Backward
    forward: Callable[[Sizes], Kernel]
    pullback: Callable[[Sizes], BackwardKernel]


class KernelSource(Protocol):
    """Where the kernels of one program come from: the compiler, or a bundle."""

    @property
    def tag(self) -> str:
        """What tells it from other sources for the same program; empty for the compiler with its usual backends."""
        ...

    def backend_on(self, device: str) -> Backend:
        """What runs on a type of device.

        Raises:
            TargetError: nothing does.
        """
        ...

    def of_part(self, program: Program) -> KernelSource:
        """The kernels of an attention that the program is made of."""
        ...

    def kernel(self, widths: Widths, workload: Workload, target: Target, sizes: Sizes) -> Kernel:
        """The kernel for these head widths and element types on ``target``.

        It runs calls of any sizes; those of the bucket of ``sizes`` are what it is chosen for.
        """
        ...

    def refusal(self, widths: Widths, workload: Workload, target: Target) -> str | None:
        """Why there is no such kernel, as far as can be told without building it."""
        ...

    def training(self, widths: Widths, names: Container[str], workload: Workload, target: Target) -> Training | str:
        """How to train for the gradients of ``names``, or why the reference must.

        With ``workload.lse`` the backward takes the cotangent of the log-sum-exp too.
        """
        ...

    def router(self, program: Program, widths: Widths, workload: Workload, device: str) -> tuple[Ranking, Router] | str:
        """Kernels that choose for the one route of a part, or why torch must."""
        ...

    def selector(self, ranking: KeyRanking, workload: Workload, target: Target) -> Selector | str:
        """Kernels that choose single keys by a ranking, or why torch must."""
        ...

    def lse_problem(self, widths: Widths) -> str | None:
        """Why there is no log-sum-exp; ``None`` if there is one."""
        ...

    def input_dtypes(self, dtype: str, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """The element types to hand inputs over in, given those of the call: the same, or wider."""
        ...


class Runtime:
    """One program as :class:`attnc.library.Implementation`.

    A kernel is chosen by the target, the head widths, the element types, the gradients wanted, and the bucket that the
    sizes fall into; every kernel runs all sizes, so no size compiles unless its bucket was tuned.
    """

    def __init__(self, program: Program, source: KernelSource) -> None:
        self.program = program
        self.signature = Signature.of(program)
        self._source = source
        self._chosen: dict[tuple[Any, ...], Kernel] = {}
        self._training: dict[tuple[Any, ...], Training | str] = {}
        self._refusals: dict[tuple[Any, ...], str | None] = {}

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], lse: bool, needs: Sequence[bool] = ()
    ) -> list[Tensor]:
        """Compute ``out [B,H,M,E]``; if ``lse``, the log-sum-exp ``[B,H,M]``; and the states for a backward."""
        sizes, out, rows, saved = self._prepare(q, k, v, values, lse, needs)
        written = [out, *([] if rows is None else [rows]), *saved]
        if out.numel() == 0:
            return written
        inputs, numbers, _ = split(self.signature, values)
        kernel = self._kernel(q, v, values, lse, needs, sizes)
        with _on_device_of(q):
            kernel.run(
                q.detach(),
                k.detach(),
                v.detach(),
                self._inputs(q, inputs),
                list(numbers),
                [sizes[name] for name in self.signature.extents],
                out,
                rows,
                **({"saved": saved} if saved else {}),
            )
        return written

    def shapes(
        self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], lse: bool, needs: Sequence[bool] = ()
    ) -> list[Tensor]:
        """Check the call and return empty tensors like the results of :meth:`run`."""
        _, out, rows, saved = self._prepare(q, k, v, values, lse, needs)
        return [out, *([] if rows is None else [rows]), *saved]

    def backward(
        self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], lse: bool, needs: Sequence[bool]
    ) -> Backward | str:
        """The derived backward for a call that needs some gradients, or why the reference serves them."""
        training = self._train(q, v, values, lse, needs)
        return training if isinstance(training, str) else training.backward

    def refusal(
        self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], lse: bool, needs: Sequence[bool] = ()
    ) -> str | None:
        """Why no kernel runs such a call, or none serves the gradients it needs."""
        key = self._key(q, v, values, lse)
        if key not in self._refusals:
            try:
                self._refusals[key] = self._source.refusal(*self._wanted(q, v, values, lse))
            except TargetError as error:
                self._refusals[key] = str(error)
        if (refusal := self._refusals[key]) is not None or not any(needs):
            return refusal
        trained = self._train(q, v, values, lse, needs)
        return trained if isinstance(trained, str) else None

    def pull(
        self,
        cotangents: Sequence[Tensor],
        kept: Sequence[Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        values: Sequence[Any],
        needs: Sequence[bool],
    ) -> list[Tensor]:
        """The gradients that are needed, by the derived backward. ``kept`` is what it reads besides cotangents."""
        sizes = check_call(self.program, self.signature, q, k, v, values)
        lse = len(cotangents) == 2
        training = self._train(q, v, values, lse, needs)
        assert isinstance(training, Training)
        backward = training.backward
        inputs, numbers, _ = split(self.signature, values)
        names = self._names(needs)
        tensors = {name: x.detach() for name, x in zip(("q", "k", "v"), (q, k, v), strict=True)}
        tensors |= {source.name: x.detach() for source, x in zip(self.signature.inputs, inputs, strict=True)}
        if q.numel() == 0 or k.numel() == 0:
            return [torch.zeros_like(tensors[name]) for name in names]
        parameters = {x.name: number for x, number in zip(self.signature.parameters, numbers, strict=True)}
        call = Call(sizes, tensors, parameters, self.program.group)
        results = results_for(backward, call)
        given = {"d_out": cotangents[0], **({"d_lse": cotangents[1]} if lse else {})}
        rest = iter(kept)
        reads = [given[x.name] if x.name in given else next(rest) for x in backward.reads]
        with _on_device_of(q):
            training.pullback(sizes).run(
                tensors["q"],
                tensors["k"],
                tensors["v"],
                self._inputs(q, inputs),
                list(numbers),
                [sizes[name] for name in self.signature.extents],
                [x.detach() for x in reads],
                results,
            )
            return gradients(backward, call, results, names)

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

    def _names(self, needs: Sequence[bool]) -> list[str]:
        """The names of the real arguments whose gradients are needed."""
        real = [source.name for source in self.signature.inputs if source.kind is Kind.REAL]
        return [name for name, needed in zip(["q", "k", "v", *real], needs, strict=True) if needed]

    def _prepare(
        self, q: Tensor, k: Tensor, v: Tensor, values: Sequence[Any], lse: bool, needs: Sequence[bool]
    ) -> tuple[dict[str, int], Tensor, Tensor | None, list[Tensor]]:
        """Check the call; the sizes, and empty tensors for output, log-sum-exp and saved states."""
        sizes = check_call(self.program, self.signature, q, k, v, values)
        if lse and (problem := self._source.lse_problem((int(sizes["D"]), int(sizes["E"])))):
            raise ArgumentError("return_lse", problem)
        width = self.program.body.output.width
        assert width is not None
        rows = (sizes["B"], sizes["H"], sizes["M"])
        out = q.new_empty((*rows, size_value(width, sizes)))
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        backward = self.backward(q, k, v, values, lse, needs) if any(needs) else ""
        states = () if isinstance(backward, str) else [x for x in backward.reads if x.name.startswith("saved_")]
        saved = [q.new_empty([size_value(dim, sizes) for dim in state.dims], dtype=wide) for state in states]
        return sizes, out, q.new_empty(rows, dtype=wide) if lse else None, saved

    def _kernel(
        self, q: Tensor, v: Tensor, values: Sequence[Any], lse: bool, needs: Sequence[bool], sizes: Sizes
    ) -> Kernel:
        training = self._train(q, v, values, lse, needs) if any(needs) else ""
        if not isinstance(training, str):
            return training.forward(sizes)
        key = (*self._key(q, v, values, lse), bucket_of(sizes))
        if key not in self._chosen:
            self._chosen[key] = self._source.kernel(*self._wanted(q, v, values, lse), sizes)
        return self._chosen[key]

    def _train(self, q: Tensor, v: Tensor, values: Sequence[Any], lse: bool, needs: Sequence[bool]) -> Training | str:
        unordered = not torch.are_deterministic_algorithms_enabled()
        key = (*self._key(q, v, values, lse), *needs, unordered)
        if key not in self._training:
            try:
                widths, workload, target = self._wanted(q, v, values, lse)
                workload = replace(workload, unordered=unordered)
                self._training[key] = self._source.training(widths, self._names(needs), workload, target)
            except TargetError as error:
                self._training[key] = str(error)
        return self._training[key]

    def _key(self, q: Tensor, v: Tensor, values: Sequence[Any], lse: bool) -> tuple[Any, ...]:
        inputs, _, _ = split(self.signature, values)
        return q.device, q.dtype, int(q.shape[3]), int(v.shape[3]), lse, *(x.dtype for x in inputs)

    def _wanted(self, q: Tensor, v: Tensor, values: Sequence[Any], lse: bool) -> tuple[Widths, Workload, Target]:
        inputs, _, _ = split(self.signature, values)
        dtype = DTYPES[q.dtype]
        dtypes = self._source.input_dtypes(dtype, tuple(DTYPES[x.dtype] for x in inputs))
        widths = int(q.shape[3]), int(v.shape[3])
        return widths, Workload(dtype, dtypes, lse), target_of_device(q.device.type)

    def _inputs(self, q: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = tuple(DTYPES[x.dtype] for x in inputs)
        wanted = self._source.input_dtypes(DTYPES[q.dtype], given)
        return [
            x.detach() if have == want else x.detach().to(_TORCH[want])
            for x, have, want in zip(inputs, given, wanted, strict=True)
        ]


def _on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


_TORCH = {name: dtype for dtype, name in DTYPES.items()}
