"""The specs with routes and branches against formulas written from their papers, at sizes that divide nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import routing_formulas as formulas
import torch
from torch import Tensor

import attnc
from attnc.ir.nodes import Kind
from attnc.signature import size_value

SPECS = Path(__file__).resolve().parent.parent / "specs" / "routing"
SIZES = {"B": 2, "H": 4, "G": 2, "M": 19, "N": 29, "D": 8, "E": 6}


def _random(e: Any, generator: torch.Generator) -> dict[str, Tensor]:
    return {}


def _drawn(e: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Places in a random order, and how often each key is drawn."""

    def order(n: int) -> Tensor:
        return torch.rand(e.B, e.H, n, generator=generator).argsort(-1)

    draws = torch.randint(e.N, (e.B, e.H, e.SAMPLES), generator=generator)
    counts = torch.nn.functional.one_hot(draws, e.N).sum(2)
    return {"place_q": order(e.M), "place_k": order(e.N), "drawn": counts}


@dataclass(frozen=True)
class Case:
    """A spec at small constants; ``alike`` adds a common vector to q and k, so that blocks resemble themselves."""

    name: str
    formula: formulas.Formula
    constants: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    made: Callable[[Any, torch.Generator], dict[str, Tensor]] = _random
    alike: float = 0.0


INDEX = {"HEADS": 3, "WIDTH": 5}
WINDOWS = {"WINDOW": 4, "STRIDE": 2, "BLOCK": 8}
CASES = [
    Case("moba:moba", formulas.moba, {"BLOCK": 4, "TOP": 3}),
    Case("moba:flash_moba", formulas.moba, {"BLOCK": 3, "TOP": 5}, sizes={"M": 29}),
    Case("moba:moba", formulas.moba, {"BLOCK": 8, "TOP": 9}),
    Case("biformer", formulas.biformer, {"REGION": 5, "TOP": 2}, sizes={"M": 29}),
    Case("seer:prefill", formulas.seer_prefill, {"BLOCK": 4, "GATE": 6, "DENSE": 2}, {"t": 0.2}),
    Case("seer:decode", formulas.seer_decode, {"BLOCK": 4, "GATE": 6, "TOP": 3}, sizes={"M": 2}),
    Case("nsa", formulas.nsa, {**WINDOWS, "TOP": 4, "LOCAL": 5}, sizes={"M": 45, "N": 45}),
    Case("nsa", formulas.nsa, {"WINDOW": 4, "STRIDE": 4, "BLOCK": 4, "TOP": 4, "LOCAL": 3}),
    Case("infllm", formulas.infllm, {**WINDOWS, "COARSE": 2, "TOP": 4, "LOCAL": 2, "DENSE": 10}, sizes={"N": 53}),
    Case("infllm", formulas.infllm, {**WINDOWS, "COARSE": 2, "TOP": 4, "LOCAL": 2, "DENSE": 99}),
    Case("nabla", formulas.nabla, {"BLOCK": 4, "WT": 1, "WY": 3, "WX": 3}, {"p": 0.6, "height": 2, "breadth": 2}),
    Case("sparge", formulas.sparge, {"QUERIES": 6, "KEYS": 4, "CDF": 0.7, "SIMILAR": 0.5}, alike=0.9),
    Case("sparge", formulas.sparge, {"QUERIES": 4, "KEYS": 4, "CDF": 0.1, "SIMILAR": 0.0}),
    Case("vmoba:threshold", formulas.vmoba_threshold, {"BLOCK": 4, "TAU": 0.4}),
    Case("vmoba:global", formulas.vmoba_global, {"BLOCK": 4, "TOP": 2}),
    Case("dsa:dsa", formulas.dsa, {**INDEX, "TOP": 7}),
    Case("dsa:hisa", formulas.hisa, {**INDEX, "TOP": 7, "BLOCK": 4, "COARSE": 3}),
    Case("mosa", formulas.mosa, {"SPARSITY": 4}, sizes={"M": 29}),
    Case("dynamic_mask", formulas.dynamic_mask, {"TOP": 6}),
    Case("star", formulas.star_query, {"SHARD": 7}),
    Case("hyper", formulas.hyper, {"BUCKET": 5, "SAMPLES": 6}, made=_drawn),
]
each_case = pytest.mark.parametrize("case", CASES, ids=[f"{case.name}-{at}" for at, case in enumerate(CASES)])


def load(case: Case) -> attnc.Op:
    stem, _, name = case.name.partition(":")
    return attnc.load(SPECS / f"{stem}.attn", name or None, constants=case.constants)


@dataclass(frozen=True)
class Made:
    op: attnc.Op
    tokens: tuple[Tensor, Tensor, Tensor]
    inputs: dict[str, Tensor]
    env: SimpleNamespace

    @property
    def arguments(self) -> dict[str, Any]:
        return self.inputs | self.env.params


def make(case: Case, generator: torch.Generator, whole_numbers: bool = False) -> Made:
    """The operator and random arguments in float64; with whole numbers, ranks are equal often."""
    op = load(case)
    written = {**SIZES, **case.sizes}
    env = SimpleNamespace(**written, **case.constants, **case.params)
    env.params = dict(case.params)

    def real(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x.round() if whole_numbers else x

    inputs = case.made(env, generator)
    for source in op.program.inputs:
        if source.name not in inputs:
            assert source.kind is Kind.REAL
            inputs[source.name] = real(*(size_value(dim, written) for dim in source.dims))
    for name, x in inputs.items():
        setattr(env, name, x)
    common = case.alike * real(env.D)
    q = real(env.B, env.H, env.M, env.D) + common
    k = real(env.B, env.G, env.N, env.D) + common
    return Made(op, (q, k, real(env.B, env.G, env.N, env.E)), inputs, env)


def test_every_routed_spec_has_a_case() -> None:
    names = set()
    for path in SPECS.glob("*.attn"):
        found = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("attention ")]
        names |= {path.stem if len(found) == 1 else f"{path.stem}:{name}" for name in found}
    assert names == {case.name for case in CASES}


@each_case
def test_reference_computes_the_paper(case: Case, generator: torch.Generator) -> None:
    made = make(case, generator)
    expected = case.formula(made.env, *made.tokens)
    found = made.op.reference(*made.tokens, **made.arguments)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at", [0, 2, 15, 16, 17, 18])
def test_ties_go_to_the_lower_index(at: int, generator: torch.Generator) -> None:
    made = make(CASES[at], generator, whole_numbers=True)
    expected = CASES[at].formula(made.env, *made.tokens)
    found = made.op.reference(*made.tokens, **made.arguments)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@each_case
def test_gradients_are_those_of_the_chosen_pairs(case: Case, generator: torch.Generator) -> None:
    """A step along the gradient changes the result by what the gradient says: choices carry none, and do not move."""
    made = make(case, generator)
    leaves = [x.clone().requires_grad_() for x in made.tokens]
    real = {name: x.clone().requires_grad_() for name, x in made.inputs.items() if x.is_floating_point()}
    out = made.op.reference(*leaves, **{**made.arguments, **real})
    cotangent = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    wanted = [*leaves, *real.values()]
    grads = torch.autograd.grad((out * cotangent).sum(), wanted, allow_unused=True)
    step = 1e-6
    moves = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in wanted]
    ends = []
    for sign in (1, -1):
        moved = [x.detach() + sign * step * move for x, move in zip(wanted, moves, strict=True)]
        inputs = {**made.arguments, **dict(zip(real, moved[3:], strict=True))}
        ends.append((made.op.reference(*moved[:3], **inputs) * cotangent).sum())
    expected = sum((g * move).sum() for g, move in zip(grads, moves, strict=True) if g is not None)
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), torch.as_tensor(expected), rtol=1e-5, atol=1e-5)
