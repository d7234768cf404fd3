"""Cases of ``triton_cases`` with a list of keys for each row, beside the reference in float64."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton_backward_cases
from torch import Tensor
from triton_backward_cases import find
from triton_cases import NAMES, TOLERANCES, Data, make

from attnc import compiler
from attnc.analyse.gradient.backward import Backward
from attnc.analyse.gradient.groups import sum_groups
from attnc.analyse.hoist import hoist
from attnc.backends.protocol import BackwardKernel, Kernel, Target, Workload
from attnc.backends.triton import TritonBackend
from attnc.ir.program import Program
from attnc.routing.lower import with_lists

HEADS = ("", "G", "H")


def listed(case: str, heads: str, dtype: str, seed: int, longest: int = 21, device: str = "cpu", **sizes: int) -> Data:
    """A case with lists of at most ``longest`` keys: empty in the first row, with nonsense behind their ends."""
    data = make(find(case).at(**sizes), dtype, seed, device)
    data.program = with_lists(data.program, heads)
    data.inputs = [*data.inputs, *lists_of(data, heads, longest, seed)]
    return data


def lists_of(data: Data, heads: str, longest: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    (batch, query_heads, rows, _), (groups, keys) = data.q.shape, data.k.shape[1:3]
    count = {"": 1, "G": groups, "H": query_heads}[heads]
    numbers = torch.rand(batch, count, rows, keys, generator=random).argsort(-1)[..., :longest].int()
    longest = numbers.shape[-1]
    counts = torch.randint(0, longest + 1, numbers.shape[:-1], generator=random).int()
    counts[..., :1] = 0
    behind = torch.arange(longest) >= counts[..., None]
    nonsense = torch.randint(-99, 2**30, numbers.shape, generator=random).int()
    made = torch.where(behind, nonsense, numbers), counts
    return made[0].to(data.q.device), made[1].to(data.q.device)


def compare(data: Data, target: Target) -> None:
    """Assert that the forward kernels do what the reference does."""
    plan = compiler.plan_program(data.program)
    workload, backend = _workload(data), TritonBackend()
    assert not (problems := backend.problems(plan, workload, target)), problems
    out = torch.full_like(data.expected()[0], float("nan"), dtype=data.q.dtype, device=data.q.device)
    lse = torch.full(out.shape[:3], float("nan"), device=out.device) if data.case.lse else None
    kernel = backend.build(plan, workload, target)
    kernel.run(data.q, data.k, data.v, data.inputs, data.case.params, data.case.extents, out, lse)
    expected, rows = data.expected()
    tolerance = TOLERANCES[NAMES[data.q.dtype]] * data.case.loose
    torch.testing.assert_close(out.cpu().double(), expected, rtol=tolerance, atol=tolerance)
    if lse is not None and rows is not None:
        torch.testing.assert_close(lse.cpu().double(), rows, rtol=tolerance, atol=tolerance)


def kernels(program: Program, workload: Workload, target: Target) -> tuple[Backward, Kernel, BackwardKernel]:
    """The derived backward of lists, the forward that saves for it, and its kernels."""
    backward, backend = sum_groups(compiler.derive_backward(program)), TritonBackend()
    workload = replace(workload, lse=False, saved=backward.saved, unordered=True)
    plan = hoist(backward.plan)
    problems = [*backend.problems(plan, workload, target), *backend.backward_problems(backward, workload, target)]
    assert not problems, problems
    forward = backend.build(plan, replace(workload, unordered=False), target)
    return backward, forward, backend.build_backward(backward, workload, target)


def compare_gradients(data: Data, target: Target) -> None:
    """Assert that the gradients are those of autograd through the reference."""
    backward, *made = kernels(data.program, _workload(data), target)
    triton_backward_cases.compare(data, target, backward, (made[0], made[1]))


def _workload(data: Data) -> Workload:
    return Workload(NAMES[data.q.dtype], tuple(NAMES[x.dtype] for x in data.inputs), data.case.lse)
