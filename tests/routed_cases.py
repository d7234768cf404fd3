"""Routed operators of the specs whose queries choose single keys, run by Triton's kernels beside the reference."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from test_routing_specs import CASES, SPECS, Case, make

import attnc
from attnc.library import SlowGradientWarning
from attnc.routing.choice import Lists, by_head
from attnc.routing.choose import choose
from attnc.signature import size_value

SMALL = {"B": 1, "M": 7, "N": 19, "H": 4, "G": 2}
BY_KEY = ("dsa:dsa", "dsa:hisa", "dynamic_mask")


def case_of(name: str) -> Case:
    found = next(case for case in CASES if case.name == name)
    return replace(found, sizes={**found.sizes, **SMALL})


def compare_gathered(name: str, seed: int, gradients: bool) -> None:
    """Output, and gradients if asked for, of kernels that gather, in float32."""
    case = case_of(name)
    made = make(case, torch.Generator().manual_seed(seed))
    stem, _, which = name.partition(":")
    op = attnc.load(SPECS / f"{stem}.attn", which or None, constants=case.constants, backend="triton")
    op.composite.gathers = True
    real = [*made.tokens, *(x for x in made.inputs.values() if x.is_floating_point())]
    names = [key for key, x in made.inputs.items() if x.is_floating_point()]
    wide = [x.clone().requires_grad_(gradients) for x in real]
    narrow = [x.float().requires_grad_(gradients) for x in real]

    def given(tensors: list[torch.Tensor]) -> dict[str, Any]:
        return {**made.arguments, **dict(zip(names, tensors[3:], strict=True))}

    expected = op.reference(*wide[:3], **given(wide))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowGradientWarning)
        found = op(*narrow[:3], **given(narrow))
    assert op.composite.used == {"": "gathered"}, op.composite.used
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    if not gradients:
        return
    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
    grads = torch.autograd.grad(found, narrow, cotangent, allow_unused=True)
    due = torch.autograd.grad(expected, wide, cotangent.double(), allow_unused=True)
    for grad, right in zip(grads, due, strict=True):
        if right is None or not right.any():
            assert grad is None or not grad.any()
        else:
            assert grad is not None
            torch.testing.assert_close(grad, right.float(), rtol=1e-3, atol=1e-4)


CHOICES = {
    "indexer": "input a: real[B, 3, M, 16] input c: real[B, N, 16] input w: real[B, M, 3] mask causal "
    "route keys(block=1) per query { "
    "rank sum(n, w[b, row, n] * relu(dot(a[b, n, row, :], c[b, j, :]))) select top(7) }",
    "two stages": "input a: real[B, 3, M, 16] input c: real[B, N, 16] input w: real[B, M, 3] mask causal "
    "route keys(block=4) per query { rank sum(n, w[b, row, n] * relu(dot(a[b, n, row, :], mean(c[b, j, :])))) "
    "select top(3) always first(1), last(1) } "
    "route keys(block=1) per query { "
    "rank sum(n, w[b, row, n] * relu(dot(a[b, n, row, :], c[b, j, :]))) select top(7) }",
    "bias": "input x: real[B, G, N] mask causal and i - j < 11 "
    "route keys(block=1) per query { rank x[b, g, j] select top(5) }",
    "scores": "route keys(block=1) per query { rank dot(q, k) * scale - 0.25 * (j - 3) select top(N // 3) }",
    "heads": "input x: real[H, M, N] input doc: int[B, N] mask same_document(doc) "
    "route keys(block=1) per query { rank x[h, row, j] candidates J % 3 != 1 select top(4) }",
    "keys of many": "input a: real[B, 2, M, 16] input c: real[B, 2, N, 16] "
    "route keys(block=1) per query { rank sum(n, dot(a[b, n, row, :], c[b, n, j, :])) select top(6) }",
    "none": "mask j < i - 9 route keys(block=1) per query { rank dot(q, k) select top(3) }",
    "nothing": "route keys(block=1) per query { rank dot(q, k) select top(N - N) }",
    "everything": "route keys(block=1) per query { rank dot(q, k) select top(99) }",
}
"""Bodies of attentions whose choices have kernels."""


def compare_choices(name: str, seed: int, m: int = 7, n: int = 41, device: str = "cpu") -> None:
    """The lists of kernels are the choices of torch: whole numbers, so that ranks are exact and often equal; some are
    not finite."""
    random = torch.Generator().manual_seed(seed)
    op = attnc.loads(f"attention a {{ {CHOICES[name]} }}", backend=None if device == "cuda" else "triton")
    sizes = {"B": 2, "H": 4, "G": 2, "M": m, "N": n, "D": 16, "E": 16}

    def whole(*shape: int) -> torch.Tensor:
        return torch.randint(-2, 3, shape, generator=random).float().to(device)

    q, k, v = whole(2, 4, m, 16), whole(2, 2, n, 16), whole(2, 2, n, 16)
    inputs = {x.name: whole(*(size_value(dim, sizes) for dim in x.dims)) for x in op.program.inputs}
    if "doc" in inputs:
        inputs["doc"] = inputs["doc"].long()
    if "x" in inputs:
        some = torch.rand(inputs["x"].shape, generator=random).to(device)
        for at, value in enumerate((float("nan"), float("inf"), -float("inf"), -0.0)):
            inputs["x"] = torch.where((some > at / 8) & (some < at / 8 + 0.06), value, inputs["x"])
    values = op.composite.signature.bind(inputs)
    (part, _), (call, found) = op.composite.parts[0], op.composite.chosen(q, k, v, values)[""]
    assert isinstance(found[-1].held, Lists), op.composite.selecting[""].made
    lists = found[-1].held
    ascending = lists.numbers[..., 1:] > lists.numbers[..., :-1]
    behind = torch.arange(lists.most, device=device) >= lists.counts[..., None]
    assert (ascending | behind[..., 1:]).all()
    right = choose(call, part.body.mask, part.body.routes)[-1].words
    assert right.any() or name in ("none", "nothing") or not m * n
    torch.testing.assert_close(*torch.broadcast_tensors(by_head(found[-1].words, call), right), rtol=0, atol=0)
