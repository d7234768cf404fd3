"""Whether a kernel is right: outputs poisoned and guarded, awkward sizes, beside the reference in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attnc.autotune.data import Call, Guarded, awkward_sizes, make_call
from attnc.autotune.problem import Problem
from attnc.backends.protocol import Config, Kernel
from attnc.gradients import Call as Pull
from attnc.gradients import gradients, results_for
from attnc.reference import evaluate
from attnc.runtime import Training
from attnc.signature import size_value

TOLERANCE = {"f64": 1e-9, "f32": 1e-4, "f16": 4e-3, "bf16": 3e-2}
"""Largest error of an output, over the largest absolute value expected (at least 1)."""
LOOSER = 4.0
"""Gradients are sums of more and larger terms."""


def check(problem: Problem, config: Config, seed: int) -> dict[str, Any]:
    """The ``check`` of a record, and ``"wrong"`` in it: why the kernel is, or an empty text."""
    tolerance = TOLERANCE[problem.workload.dtype] * (LOOSER if problem.wants else 1.0)
    found: dict[str, Any] = {"reference": "float64", "seed": seed, "shapes": [], "tolerance": tolerance}
    worst, relative, wrong = 0.0, 0.0, ""
    for sizes in awkward_sizes(problem):
        call = make_call(problem, sizes, seed)
        guarded = Guarded()
        if problem.wants:
            results, expected = _trained(problem, config, call, guarded)
        else:
            results, expected = _computed(problem, config, call, guarded)
        found["shapes"].append("x".join(str(sizes[name]) for name in "BHGMN"))
        if not guarded.intact():
            wrong = "it writes outside its outputs"
        for result, right in zip(results, expected, strict=True):
            error, scale = difference(result, right)
            worst, relative = max(worst, error), max(relative, error / scale)
    if relative > tolerance and not wrong:
        wrong = f"it is off by {relative:.2g} of the largest value, over {tolerance:.2g}"
    return {**found, "max_abs": worst, "max_rel": relative, "wrong": wrong}


def difference(result: Tensor, right: Tensor) -> tuple[float, float]:
    """The largest error, huge where only one of the two is finite, and the largest value expected, at least 1."""
    if not right.numel():
        return 0.0, 1.0
    right = right.double()
    apart = torch.where(result == right, 0.0, (result.double() - right).abs())
    scale = right.masked_fill(~right.isfinite(), 0.0).abs().amax()
    return min(1e30, float(apart.nan_to_num(nan=1e30).amax())), max(1.0, float(scale))


def run_forward(problem: Problem, kernel: Kernel, call: Call, out: Tensor, rows: Sequence[Tensor]) -> None:
    """Run a forward; ``rows`` are the log-sum-exp if the workload has one, then saved states."""
    lse, saved = (rows[0], rows[1:]) if problem.workload.lse else (None, rows)
    more: Mapping[str, Any] = {"saved": saved} if saved else {}
    kernel.run(call.q, call.k, call.v, call.inputs, call.parameters, call.extents, out, lse, **more)


def empty_output(problem: Problem, call: Call) -> Tensor:
    """A tensor for the output."""
    width = problem.program.body.output.width
    assert width is not None
    sizes = call.sizes
    return call.q.new_empty((sizes["B"], sizes["H"], sizes["M"], size_value(width, sizes)))


def empty_rows(problem: Problem, call: Call, training: Training | None) -> list[Tensor]:
    """Tensors for the log-sum-exp and for saved states."""
    wide = torch.float64 if call.q.dtype == torch.float64 else torch.float32
    sizes = call.sizes
    lse = [call.q.new_empty((sizes["B"], sizes["H"], sizes["M"]), dtype=wide)] if problem.workload.lse else []
    states = [x for x in training.backward.reads if x.name.startswith("saved_")] if training else []
    return lse + [call.q.new_empty([size_value(dim, sizes) for dim in x.dims], dtype=wide) for x in states]


class Pullback:
    """One backward ready to run: what the forward kept, a cotangent, and where results go."""

    def __init__(self, problem: Problem, training: Training, call: Call, guarded: Guarded | None = None) -> None:
        self.problem, self.training, self.call = problem, training, call
        program = problem.program
        guarded_like = guarded.like if guarded else torch.empty_like
        out, rows = guarded_like(empty_output(problem, call)), empty_rows(problem, call, training)
        rows = [guarded_like(x) for x in rows]
        run_forward(problem, training.forward(problem.sizes), call, out, rows)
        generator = torch.Generator(call.q.device).manual_seed(1)
        self.d_out = torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
        kept = {"out": out, "d_out": self.d_out}
        states = [x for x in training.backward.reads if x.name.startswith("saved_")]
        kept |= {x.name: row for x, row in zip(states, rows, strict=True)}
        self.reads = [kept[x.name] for x in training.backward.reads]
        self.pull = Pull(
            call.sizes,
            {"q": call.q, "k": call.k, "v": call.v}
            | {x.name: tensor for x, tensor in zip(program.inputs, call.inputs, strict=True)},
            {x.name: number for x, number in zip(program.parameters, call.parameters, strict=True)},
            program.group,
        )
        self.results = [guarded_like(x) for x in results_for(training.backward, self.pull)]

    def run(self) -> None:
        call = self.call
        kernel = self.training.pullback(self.problem.sizes)
        kernel.run(
            call.q, call.k, call.v, call.inputs, call.parameters, call.extents, self.reads, self.results
        )  # fmt: skip

    def gradients(self) -> list[Tensor]:
        return gradients(self.training.backward, self.pull, self.results, self.problem.wants)


def _computed(problem: Problem, config: Config, call: Call, guarded: Guarded) -> tuple[list[Tensor], list[Tensor]]:
    kernel: Any = problem.kernel(problem.with_config(config))
    out = guarded.like(empty_output(problem, call))
    rows = [guarded.like(x) for x in empty_rows(problem, call, None)]
    run_forward(problem, kernel, call, out, rows)
    expected = reference(problem, call, call.q, call.k, call.v, call.inputs)
    return [out, *rows], list(expected) if isinstance(expected, tuple) else [expected]


def _trained(problem: Problem, config: Config, call: Call, guarded: Guarded) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients through a forward and a backward, one of which has ``config``, and those of the reference."""
    pullback = Pullback(problem, problem.training(problem.with_config(config)), call, guarded)
    pullback.run()
    names = {"q": call.q, "k": call.k, "v": call.v}
    names |= {x.name: tensor for x, tensor in zip(problem.program.inputs, call.inputs, strict=True)}
    wide = {name: x.double().requires_grad_() if x.is_floating_point() else x for name, x in names.items()}
    q, k, v, *inputs = wide.values()
    with torch.enable_grad():
        out = reference(problem, call, q, k, v, inputs)
        wanted = [wide[name] for name in problem.wants]
        found = torch.autograd.grad(out, wanted, pullback.d_out.double(), allow_unused=True)
    expected = [torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]
    return pullback.gradients(), expected


def reference(problem: Problem, call: Call, q: Tensor, k: Tensor, v: Tensor, inputs: Sequence[Tensor]) -> Any:
    """What is right, in float64: the output, with the log-sum-exp if the workload has one."""
    program = problem.program
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    return evaluate(
        program,
        q.double(),
        k.double(),
        v.double(),
        {source.name: x for source, x in zip(program.inputs, wide, strict=True)},
        {parameter.name: x for parameter, x in zip(program.parameters, call.parameters, strict=True)},
        dict(zip(program.extents, call.extents, strict=True)),
        return_lse=problem.workload.lse,
    )
