"""Routes given what they are not made for: run by kernels, with keys gathered or masked, beside the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

import attnc

Maker = Callable[[int, int, torch.Generator], Tensor]
SINGLE = "route keys(block=1) per query"
BLOCKS = "route keys(block=4) per query"


def not_finite(m: int, n: int, random: torch.Generator) -> Tensor:
    """Ranks of which most are not finite."""
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, -0.0, 0.0])
    return values[torch.randint(0, 6, (1, m, n), generator=random)]


def never_a_number(m: int, n: int, random: torch.Generator) -> Tensor:
    return torch.full((1, m, n), float("nan"))


def out_of_range(m: int, n: int, random: torch.Generator) -> Tensor:
    """Numbers of keys: outside, far outside, repeated."""
    numbers = torch.randint(-3, n + 3, (1, 1, m, 6), generator=random)
    numbers[..., 1] = 2**31 - 1
    numbers[..., 2] = -(2**31)
    numbers[..., 4] = numbers[..., 3]
    return numbers


def all_outside(m: int, n: int, random: torch.Generator) -> Tensor:
    return torch.full((1, 1, m, 6), n)


@dataclass(frozen=True)
class Border:
    """``gathers`` says whether its keys can be gathered."""

    body: str
    made: Mapping[str, Maker] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    gathers: bool = True
    empty: bool = False
    keeps: bool = False


RANKED = f"input x: real[B, M, N] {SINGLE} {{ rank x[b, row, j] select top(3) }}"
GIVEN = f"input at: int[B, 1, M, 6] {SINGLE} {{ select given(at[b, 0, row, :]) }}"
BORDERS = {
    "ranks that are not finite": Border(RANKED, {"x": not_finite}),
    "ranks that are no numbers": Border(RANKED, {"x": never_a_number}),
    "ranks of blocks that are not finite": Border(
        f"input x: real[B, M, N] {BLOCKS} {{ rank max(x[b, row, j]) select top(2) }}", {"x": not_finite}, gathers=False
    ),
    "more than there are": Border(f"{SINGLE} {{ rank dot(q, k) select top(99) }}"),
    "none": Border(f"{SINGLE} {{ rank dot(q, k) select top(N - N) }}", empty=True),
    "none by a parameter": Border(
        f"param c: int {SINGLE} {{ rank dot(q, k) select top(c) }}", {}, {"c": -2}, gathers=False, empty=True
    ),
    "a number that is an input": Border(
        f"input c: int[] {SINGLE} {{ rank dot(q, k) select top(c[]) }}",
        {"c": lambda m, n, random: torch.tensor(2)}, gathers=False,
    ),
    "more blocks than there are": Border(f"{BLOCKS} {{ rank dot(q, mean(k)) select top(99) }}", gathers=False),
    "keys out of range and repeated": Border(GIVEN, {"at": out_of_range}),
    "keys out of range and repeated, causal": Border(f"mask causal {GIVEN}", {"at": out_of_range}),
    "keys all out of range": Border(GIVEN, {"at": all_outside}, empty=True),
    "blocks out of range and repeated": Border(
        f"input at: int[B, 1, M, 6] {BLOCKS} {{ select given(at[b, 0, row, :]) }}", {"at": out_of_range}, gathers=False
    ),
    "no candidate": Border(f"mask j < i - 99 {SINGLE} {{ rank dot(q, k) select top(3) }}", empty=True),
    "few candidates": Border(f"mask j < i - 5 {SINGLE} {{ rank dot(q, k) candidates J % 3 == 0 select top(3) }}"),
    "kept queries beyond": Border("keep queries top(99) by 1.0 * i", gathers=False, keeps=True),
    "no number kept": Border("param c: int = 0 keep queries top(c) by 1.0 * i", gathers=False, empty=True),
    "nothing above": Border(f"{BLOCKS} {{ rank dot(q, mean(k)) select above(1000000.0) }}", gathers=False, empty=True),
}  # fmt: skip


def compare(name: str, seed: int, backend: str | None, m: int = 9, n: int = 13, device: str = "cpu") -> None:
    """The operator is the reference, each way that it can be run, and 0 where nothing is chosen."""
    border = BORDERS[name]
    random = torch.Generator().manual_seed(seed)
    op = attnc.loads(f"attention a {{ {border.body} }}", backend=backend)
    q, k, v = (torch.randn(1, heads, size, 16, generator=random).to(device) for heads, size in ((2, m), (1, n), (1, n)))
    given = {key: make(m, n, random).to(device) for key, make in border.made.items()} | dict(border.numbers)
    assert (op.composite.gathered[""] is not None) == border.gathers
    expected = op.reference(q, k, v, **given)
    assert bool(expected.any()) != border.empty
    for gathers in (False, True) if border.gathers and backend == "triton" else (False,):
        op.composite.gathers = gathers
        leaf = q.clone().requires_grad_()
        out = op(leaf, k, v, **given)
        way = "kept" if border.keeps else "gathered" if gathers else "masked"
        assert op.composite.used[""] == way
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        assert grad.isfinite().all()
        assert not border.empty or not grad.any()
