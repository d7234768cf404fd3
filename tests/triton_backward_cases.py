"""Gradients by Triton's kernels, beside autograd through the reference in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import triton_cases
from torch import Tensor
from triton_cases import NAMES, TOLERANCES, Case, Data, documents, few, make

from attnc.analyse.gradient.backward import Backward
from attnc.analyse.gradient.derive import derive
from attnc.analyse.gradient.groups import sum_groups
from attnc.analyse.hoist import hoist
from attnc.analyse.lower import stream_program
from attnc.backends.protocol import BackwardKernel, Kernel, Target, Workload
from attnc.backends.triton import TritonBackend
from attnc.gradients import Call, gradients, results_for
from attnc.ir.nodes import Param
from attnc.reference import evaluate
from attnc.signature import size_value

MORE = (
    Case("learned window", "input w: real[H] mask causal score dot(q, k) * scale + w[h] * w[h] * (j - i)"),
    Case("buckets", "input t: real[H, 8] mask causal score dot(q, k) * scale + t[h, floor(log(1 + abs(i - j)))]"),
    Case("relative table", "input t: real[H, 2 * N] score dot(q, k) * scale + t[h, j - i + N]", {"N": 40}),
    Case("grid table", "space (y: Y, x: X) input t: real[H, 2 * Y - 1, 2 * X - 1] "
         "score dot(q, k) * scale + t[h, i.y - j.y + Y - 1, i.x - j.x + X - 1]",
         {"M": 42, "N": 42, "Y": 6, "X": 7}, extents=(6, 7)),
    Case("one number", "input t: real[H] score dot(q, k) * scale + sin(i * j) * t[h]"),
    Case("tapa", "param alpha: real = 0.2 score dot(q[0:16], k[0:16]) * scale "
         "* cos(0.6283 * abs(i - j) ** alpha * dot(q[16:32], k[16:32]))", params=(0.2,), loose=10),
    Case("gain", "input w: real[H, D] query rmsnorm(q) * w[h, :]"),
    Case("own keys", "input w: real[H, D] mask causal score dot(q, detach(k * w[h, :])) * scale"),
    Case("gated rows", "input gate: real[B, H, M, E] mask causal output o + gate[b, h, row, :]", {"M": 53, "N": 37}),
    Case("empty rows", "mask j < i - 30"),
    Case("affine of empty rows", "mask j < i - 30 normalize affine(score, 0.7, 0.01)", loose=4),
    Case("cog of empty rows", "mask j < i - 30 normalize cog(score)"),
    Case("softcap of empty rows", "mask j < i - 30 score softcap(dot(q, k) * scale, 2)"),
    Case("inline of empty rows", "mask j < i - 30 normalize inline(score)", loose=10),
    Case("mean of empty rows", "mask j < i - 30 normalize sigmoid(score) / rowsum(sigmoid(score))"),
    Case("key bias", "input u: real[B, G, N] score dot(q, k) * scale + u[b, g, j]"),
    Case("key bias of all heads", "input u: real[B, N] score dot(q, k) * scale + u[b, j]"),
    Case("row weights", "input a: real[B, H, M] param c: real = 0.3 normalize affine(score, a[b, h, row], c)",
         params=(0.3,)),
    Case("entropy", "output o * rowsum(weight * score)", loose=4),
    Case("documents and a table", "input doc: int[B, N] input t: real[H, 2 * N] mask same_document(doc) and causal "
         "score dot(q, k) * scale + t[h, j - i + N]", {"M": 40, "N": 53}, {"doc": documents}),
    Case("grouped table", "input t: real[G, N] score dot(q, k) * scale + t[g, (j * 7 + i) % N]"),
    Case("spans of tables", "input at: int[B, N] input t: real[H, 5] score dot(q, k) * scale + t[h, at[b, j]]",
         made={"at": few(5, "B", "N")}),
)  # fmt: skip


def find(name: str) -> Case:
    return next(case for case in (*triton_cases.CASES, *MORE) if case.name == name)


@cache
def derived(spec: str, D: int, E: int, grouped: bool = True) -> Backward:
    backward = derive(stream_program(triton_cases.specialized(spec, D, E), keep_detach=True))
    return sum_groups(backward) if grouped else backward


@cache
def forward_kernel(backward: Backward, workload: Workload, target: Target) -> Kernel:
    plan, backend = hoist(backward.plan), TritonBackend()
    assert not (problems := backend.problems(plan, workload, target)), problems
    return backend.build(plan, workload, target)


@cache
def backward_kernel(backward: Backward, workload: Workload, target: Target) -> BackwardKernel:
    backend = TritonBackend()
    assert not (problems := backend.backward_problems(backward, workload, target)), problems
    return backend.build_backward(backward, workload, target)


def backward_of(data: Data) -> Backward:
    sizes = data.case.all_sizes
    grouped = data.q.dtype is torch.float32  # as on Hopper; elsewhere always
    return derived(data.case.spec, sizes["D"], sizes["E"], grouped)


def workload_of(data: Data) -> Workload:
    return Workload(NAMES[data.q.dtype], tuple(NAMES[x.dtype] for x in data.inputs), False, backward_of(data).saved)


def kernels(data: Data, target: Target) -> tuple[Kernel, BackwardKernel]:
    backward, workload = backward_of(data), workload_of(data)
    return forward_kernel(backward, workload, target), backward_kernel(backward, workload, target)


def cotangent(data: Data) -> Tensor:
    width = data.program.body.output.width
    assert width is not None
    generator = torch.Generator().manual_seed(data.q.numel())
    made = torch.randn((*data.q.shape[:3], int(width.value)), generator=generator)  # type: ignore[attr-defined]
    return made.to(data.q)


def call_of(data: Data) -> Call:
    q, k = data.q, data.k
    sizes = {"B": q.shape[0], "H": q.shape[1], "G": k.shape[1], "M": q.shape[2], "N": k.shape[2]}
    sizes |= {"D": q.shape[-1], "E": data.v.shape[-1]} | dict(zip(data.program.extents, data.case.extents, strict=True))
    inputs = {x.name: tensor for x, tensor in zip(data.program.inputs, data.inputs, strict=True)}
    numbers = {x.name: value for x, value in zip(data.program.parameters, data.case.params, strict=True)}
    held = {name: torch.tensor(value, device=q.device) for name, value in numbers.items()}
    tensors = {"q": q, "k": k, "v": data.v} | inputs | held
    return Call(sizes, tensors, numbers, data.program.group)


def results(
    data: Data,
    d_out: Tensor,
    target: Target,
    derived: Backward | None = None,
    made: tuple[Kernel, BackwardKernel] | None = None,
) -> list[Tensor]:
    """What the backward kernels write, in poisoned memory, after the forward kernels."""
    forward, backward = made or kernels(data, target)
    derived = derived or backward_of(data)
    out, nan = torch.full_like(d_out, float("nan")), float("nan")
    states = {}
    for source in derived.reads:
        if source.name.startswith("saved_"):
            lanes = [int(dim.value) for dim in source.dims[3:]]  # type: ignore[attr-defined]
            states[source.name] = torch.full((*out.shape[:3], *lanes), nan, device=out.device)
    saved = [states[f"saved_{name}"] for name in derived.saved]
    forward.run(data.q, data.k, data.v, data.inputs, data.case.params, data.case.extents, out, None, saved)
    given = {"out": out, "d_out": d_out, **states}
    call = call_of(data)
    tensors = replace(derived, contributions=tuple(x for x in derived.contributions if not isinstance(x.at, Param)))
    of_tensors = iter(results_for(tensors, call))
    written = [
        out.new_empty([size_value(dim, call.sizes) for dim in part.result.dims], dtype=torch.float32)
        if isinstance(part.at, Param)
        else next(of_tensors)
        for part in derived.contributions
    ]
    for tensor in written:
        tensor.fill_(nan)
    reads = [given[source.name] for source in derived.reads]
    backward.run(data.q, data.k, data.v, data.inputs, data.case.params, data.case.extents, reads, written)
    return written


def found(
    data: Data,
    d_out: Tensor,
    target: Target,
    derived: Backward | None = None,
    kernels: tuple[Kernel, BackwardKernel] | None = None,
) -> dict[str, Tensor]:
    """The gradients by name."""
    derived = derived or backward_of(data)
    call, made = call_of(data), results(data, d_out, target, derived, kernels)
    params = {x.name for x in data.program.parameters}
    names = [name for name, x in call.tensors.items() if x.is_floating_point() and name not in params]
    of_tensors = [at for at, part in enumerate(derived.contributions) if part.name in names]
    parts = replace(derived, contributions=tuple(derived.contributions[at] for at in of_tensors))
    found = dict(zip(names, gradients(parts, call, [made[at] for at in of_tensors], names), strict=True))
    for name in params:
        total = [x.sum() for part, x in zip(derived.contributions, made, strict=True) if part.name == name]
        found[name] = torch.stack(total).sum() if total else torch.zeros(())
    return found


def expected(data: Data, d_out: Tensor) -> dict[str, Tensor]:
    """Autograd through the reference, in float64."""
    wide = {name: x.double() if x.is_floating_point() else x for name, x in call_of(data).tensors.items()}
    leaves: dict[str, Any] = {name: x.requires_grad_() for name, x in wide.items() if x.is_floating_point()}
    named = {x.name: wide[x.name] for x in data.program.inputs}
    params = {x.name: wide[x.name] for x in data.program.parameters}
    extents = dict(zip(data.program.extents, data.case.extents, strict=True))
    out = evaluate(data.program, wide["q"], wide["k"], wide["v"], named, params, extents)
    assert isinstance(out, Tensor)
    if not out.requires_grad:
        return {name: torch.zeros_like(x) for name, x in leaves.items()}
    made = torch.autograd.grad(out, list(leaves.values()), d_out.double(), allow_unused=True)
    return {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(leaves.items(), made, strict=True)}


def compare(
    data: Data,
    target: Target,
    derived: Backward | None = None,
    kernels: tuple[Kernel, BackwardKernel] | None = None,
) -> None:
    """Assert that the kernels' gradients are the reference's."""
    d_out = cotangent(data)
    right = expected(data, d_out)
    tolerance = TOLERANCES[NAMES[data.q.dtype]] * data.case.loose
    for name, gradient in found(data, d_out, target, derived, kernels).items():
        size = max(1.0, float(right[name].abs().max())) if right[name].numel() else 1.0
        torch.testing.assert_close(
            gradient.double().to(right[name].device), right[name], rtol=tolerance, atol=tolerance * size,
            msg=lambda text, name=name: f"the gradient of {name}: {text}",
        )  # fmt: skip


__all__ = ["compare", "find", "make", "results"]
