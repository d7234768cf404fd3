"""The operator a user holds."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnc import library
from attnc.errors import ArgumentError, UnsupportedError
from attnc.ir.printer import print_program
from attnc.ir.program import Program
from attnc.plan import Plan
from attnc.routing import registered
from attnc.routing.lower import is_plain
from attnc.runtime import KernelSource, Runtime
from attnc.signature import describe
from attnc.validate import check_call, check_types

if TYPE_CHECKING:
    from attnc.cost import Cost
    from attnc.routing.composite import Composite

Result = Tensor | tuple[Tensor, Tensor]


class Op:
    """One attention as a torch operator; made by :func:`attnc.load`, :func:`attnc.loads`.

    ``op(q, k, v)`` takes q ``[B, H, M, D]``, k ``[B, G, N, D]`` and v ``[B, G, N, E]`` of one dtype (bfloat16, float16,
    float32; float64 on the CPU) and device, with any strides, and gives ``[B, H, M, E]``. The inputs, parameters and
    extents that the spec declares are passed by name. It is differentiable, and works under ``torch.compile`` and
    ``torch.export``. An operator never changes: copies of it are itself.
    """

    def __init__(self, program: Program, source: KernelSource) -> None:
        self.program = program
        self._runtime = Runtime(program, source)
        self.signature = self._runtime.signature
        self.source = source
        self._plain = is_plain(program)
        name = _operator_name(program, source)
        if self._plain:
            self._operators = library.register(name, self._runtime)
        else:
            self._routed = registered.register(name, self)

    @property
    def name(self) -> str:
        """The name of the attention in its spec."""
        return self.program.name

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of what is passed besides q, k and v."""
        return self.signature.names

    @functools.cached_property
    def composite(self) -> Composite:
        """The steps of a program with routes, branches or windows."""
        from attnc.compiler import made_of_parts

        return made_of_parts(self.program, self.source)

    @property
    def hash(self) -> str:
        """The hash of what the spec means: names, order and spelling do not matter."""
        from attnc.ir.hash import program_hash

        return program_hash(self.program)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **arguments: Any) -> Any:
        """The attention of q, k, v.

        Args:
            q: ``[B, H, M, D]``.
            k: ``[B, G, N, D]``.
            v: ``[B, G, N, E]``.
            return_lse: also return the log-sum-exp of each row, ``[B, H, M]`` in float32 or wider (minus infinity where
                a row sees no key). Only where the weight has one softmax denominator.
            arguments: what the spec declares: inputs (tensors), parameters (numbers), extents of the space (ints; one
                may be left out, and then follows from N).

        Raises:
            ArgumentError: an argument is missing, unknown, or does not fit.
            SpecError: the spec asks for something that the target cannot do; the error points at it.
        """
        values = self.signature.bind(arguments)
        check_types(self.signature, q, k, v, values)
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            raise ArgumentError("q", "the kernels cannot run under transforms of torch.func: use op.reference there")
        if not self._plain:
            if not torch.compiler.is_compiling():
                return self.composite.run(q, k, v, values, return_lse)
            results = self._routed(q, k, v, *values, return_lse)
            return (results[0], results[1]) if return_lse else results[0]
        if torch.is_grad_enabled() and any(needs := library.needed(self.signature, q, k, v, values)):
            results = self._operators.train(q, k, v, *values, needs, return_lse)
            return (results[0], results[1]) if return_lse else results[0]
        call = self._operators.forward_lse if return_lse else self._operators.forward
        return call(q, k, v, *values)

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, arguments: Mapping[str, Any], lse: bool = False) -> str | None:
        """Why kernels would refuse these arguments, the gradients that they need included; ``None`` if they run.

        ``arguments`` may hold more than the operator takes.
        """
        values = self.signature.bind({name: arguments[name] for name in self.arguments if name in arguments})
        needs = library.needed(self.signature, q, k, v, values) if torch.is_grad_enabled() else ()
        return self._runtime.refusal(q, k, v, values, lse, needs)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **arguments: Any) -> Any:
        """The same by definition: eager torch in the dtype of the arguments, O(M·N) memory, differentiable."""
        values = self.signature.bind(arguments)
        check_types(self.signature, q, k, v, values)
        check_call(self.program, self.signature, q, k, v, values)
        out, lse = self._runtime.evaluate(q, k, v, values, return_lse)
        return (out, lse) if return_lse else out

    def explain(self, D: int = 64, E: int | None = None, *, grad: bool = False) -> str:
        """What the compiler derived: passes over the keys, running state, skipped tiles, and what was not possible.

        Args:
            D: width of q and k.
            E: width of v; D if not given.
            grad: explain the derived backward instead: what the forward saves, the steps, what each gradient is.
        """
        if not self._plain:
            return self.composite.explain(D, E, grad)
        if grad:
            return self._explain_gradient((D, D if E is None else E))
        from attnc.explain import explain

        return explain(self.plan(D, E))

    def _explain_gradient(self, widths: tuple[int, int]) -> str:
        from attnc.compiler import derive_backward, specialize_program
        from attnc.explain_gradient import explain_gradient, explain_refusal

        try:
            return explain_gradient(derive_backward(specialize_program(self.program, widths)))
        except UnsupportedError as error:
            return explain_refusal(self.name, [f"{one.span}: {one.message}" for one in error.diagnostics])

    def cost(
        self,
        B: int,
        M: int,
        N: int,
        *,
        H: int = 1,
        G: int | None = None,
        D: int = 64,
        E: int | None = None,
        **given: Any,
    ) -> Cost:
        """What a call of these sizes costs at least.

        Args:
            B: batch rows.
            M: query rows.
            N: keys.
            H: query heads.
            G: key and value heads; H if not given.
            D: width of q and k.
            E: width of v; D if not given.
            given: extents of the space, and the parameters and inputs that the mask reads. Without those inputs every
                pair counts as visible, and the result says that it is not exact.
        """
        from attnc.cost import cost

        extents = {name: given.pop(name) for name in self.signature.extents if name in given}
        sizes = {"B": B, "H": H, "G": H if G is None else G, "M": M, "N": N, "D": D, "E": D if E is None else E}
        return cost(self.plan(D, E), sizes | extents, given)

    def draw(self, M: int, N: int, block_m: int = 64, block_n: int = 64, **given: Any) -> str:
        """The tiles of the mask as text: empty, partly visible, full; counted in the last line.

        Args:
            M: query rows.
            N: keys.
            block_m: rows a tile.
            block_n: keys a tile.
            given: extents, parameters and inputs that the mask reads, and ``b``, ``h``, ``g`` of the head to draw.
        """
        from attnc.analyse.mask import analyse_mask
        from attnc.draw import draw

        defaults = {x.name: x.default for x in self.program.parameters if x.default is not None}
        return draw(analyse_mask(self.program.body.mask), M, N, block_m, block_n, {**defaults, **given})

    def draw_routes(self, q: Tensor, k: Tensor, v: Tensor, *, b: int = 0, h: int = 0, **arguments: Any) -> str:
        """What the routes of the spec choose on given tensors, as text: a picture of one head, the blocks that some of
        its rows took, the share of pairs that all heads keep and the work against that without routes.

        Args:
            q: ``[B, H, M, D]``.
            k: ``[B, G, N, D]``.
            v: ``[B, G, N, E]``.
            b: batch row to draw.
            h: head to draw.
            arguments: what the spec declares, as in a call.

        Raises:
            ArgumentError: the spec has no routes, or an argument does not fit.
        """
        values = self.signature.bind(arguments)
        check_types(self.signature, q, k, v, values)
        if is_plain(self.program) or not any(part.body.routes for part, _ in self.composite.parts):
            raise ArgumentError("q", f"`{self.name}` has no routes; `draw` shows its mask")
        return self.composite.draw(q, k, v, values, b, h)

    def plan(self, D: int, E: int | None) -> Plan:
        from attnc.compiler import plan_program, specialize_program

        return plan_program(specialize_program(self.program, (D, D if E is None else E)))

    def __copy__(self) -> Op:
        return self

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Op:
        return self

    def __repr__(self) -> str:
        declared = [f"{source.name}: {describe(source)}" for source in self.signature.inputs]
        declared += [f"{parameter.name}: {parameter.kind}" for parameter in self.signature.parameters]
        declared += [f"{name}: int" for name in self.signature.extents]
        return f"<attnc.Op {self.name}({', '.join(['q', 'k', 'v', *declared])})>"


def _operator_name(program: Program, source: KernelSource) -> str:
    """A name for every printed program and source: the canonical hash would mix up the names of inputs."""
    readable = re.sub(r"\W", "_", program.name, flags=re.ASCII)[:40]
    text = print_program(program) + source.tag
    return f"{readable}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
