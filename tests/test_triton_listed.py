"""Keys given by number: Triton's gather kernels against the reference in the interpreter, and ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from test_routing_specs import SPECS
from test_triton_numerics import interpreter
from triton_cases import specialized

import attnc
from attnc import compiler
from attnc.analyse.gradient.groups import sum_groups
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton import TritonBackend
from attnc.backends.triton.configs import SHARED_MEMORY
from attnc.routing.lower import with_lists

pytest.importorskip("triton")
__all__ = ["interpreter"]
Ask = Callable[..., Any]
HEADS = ("", "G", "H")
SMALL = {"B": 1, "M": 5, "N": 23, "longest": 18}


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", ["softmax", "sigmoid", "alibi", "latent", "own groups", "two passes", "gate"])
def test_forward(interpreter: Ask, name: str, heads: str, seed: int) -> None:
    interpreter("listed", case=name, heads=heads, dtype="f32", seed=seed, sizes={"B": 1, "M": 9, "N": 37})


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_forward_in_half_precision(interpreter: Ask, dtype: str, seed: int) -> None:
    interpreter("listed", case="softmax", heads="", dtype=dtype, seed=seed, sizes={"B": 1, "M": 9, "N": 37})


@pytest.mark.parametrize("sizes", [{"N": 0}, {"M": 0}, {"longest": 0}, {"H": 40, "M": 3}, {"M": 1, "N": 1}])
def test_forward_at_borders(interpreter: Ask, sizes: dict[str, int], seed: int) -> None:
    interpreter("listed", case="softmax", heads="G", dtype="f32", seed=seed, sizes={"B": 1, "M": 9, **sizes})


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", ["softmax", "sigmoid", "latent", "key bias"])
def test_gradients(interpreter: Ask, name: str, heads: str, seed: int) -> None:
    interpreter("listed", case=name, heads=heads, dtype="f32", seed=seed, gradients=True, sizes=SMALL)


@pytest.mark.parametrize("name", ["causal", "softmax with a sink", "entropy", "rope", "gate"])
def test_gradients_of_a_shared_list(interpreter: Ask, name: str, seed: int) -> None:
    interpreter("listed", case=name, heads="", dtype="f32", seed=seed, gradients=True, sizes=SMALL)


@pytest.mark.parametrize("sizes", [{"N": 0}, {"M": 0}, {"longest": 0}, {"H": 40, "M": 2}])
def test_gradients_at_borders(interpreter: Ask, sizes: dict[str, int], seed: int) -> None:
    interpreter("listed", case="softmax", heads="G", dtype="f32", seed=seed, gradients=True, sizes={**SMALL, **sizes})


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", ["dsa:dsa", "dsa:hisa", "dynamic_mask"])
def test_routed_operators(interpreter: Ask, name: str, gradients: bool, seed: int) -> None:
    interpreter("routed", case=name, seed=seed, gradients=gradients)


CHOICES = ["indexer", "two stages", "bias", "scores", "heads", "keys of many", "none", "nothing", "everything"]


@pytest.mark.parametrize("name", CHOICES)
def test_choices(interpreter: Ask, name: str, seed: int) -> None:
    interpreter("choices", case=name, seed=seed)


@pytest.mark.parametrize("sizes", [(5, 1), (1, 70), (20, 9), (0, 5), (3, 0)])
def test_choices_at_borders(interpreter: Ask, sizes: tuple[int, int], seed: int) -> None:
    interpreter("choices", case="indexer", seed=seed, sizes=sizes)


SM_90 = Target("cuda", "sm_90")
SHAPES = [
    pytest.param(SM_90, 16, 128, 128),
    pytest.param(SM_90, 64, 128, 128, marks=pytest.mark.slow),
    pytest.param(SM_90, 64, 576, 512, marks=pytest.mark.slow),
    pytest.param(Target("hip", "gfx942"), 16, 64, 64, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("target", "heads", "D", "E"), SHAPES)
def test_kernels_fit_their_registers(target: Target, heads: int, D: int, E: int) -> None:
    program = with_lists(specialized("", D, E), "")
    workload, backend = Workload("bf16", ("i32", "i32"), False), TritonBackend()
    backward = sum_groups(compiler.derive_backward(program))
    made: list[Any] = [backend.build(compiler.plan_program(program), workload, target, {"heads": heads})]
    training = replace(workload, saved=backward.saved, unordered=True)
    made.append(backend.build_backward(backward, training, target, {"heads": heads}))
    for kernel in made:
        for name, report in kernel.report().items():
            assert not report.spilled, name
            assert report.shared <= SHARED_MEMORY[target.arch], name


@pytest.mark.parametrize("target", [SM_90, pytest.param(Target("hip", "gfx942"), marks=pytest.mark.slow)])
def test_choices_fit_their_registers(target: Target) -> None:
    op = attnc.load(SPECS / "dsa.attn", "dsa")
    ranking = op.composite.selecting[""].ranking(0, 128, 128)
    assert not isinstance(ranking, str), ranking
    kernel: Any = TritonBackend().build_selector(ranking, Workload("bf16", ("bf16", "bf16", "f32"), False), target)
    for name, report in kernel.report().items():
        assert not report.spilled, name
        assert report.shared <= SHARED_MEMORY[target.arch], name


def test_why_single_keys_are_chosen_in_torch() -> None:
    """Each reason, by a spec that gives it."""
    reasons = {
        "input x: real[B, M, N] route keys(block=1) per query { rank softmax(x[b, row, J]) select top(3) }": "reduce",
        "route keys(block=1) per query { rank dot(q, k) select above(1) }": "a selection other than",
        "route keys(block=1) per query { rank dot(q, k) * dot(k, 2 * q) select top(3) }": "several dot products",
        "route keys(block=1) per query { rank dot(2 * q, k) select top(3) }": "stored vectors",
        "input x: real[B, 5, D] route keys(block=1) per query { rank dot(x[b, row, :], k) select top(3) }": "stored",
        "mask dot(q, k) > 0 route keys(block=1) per query { rank dot(q, k) select top(3) }": "depend on vectors",
        "route keys(block=2) per query { rank dot(q, mean(k)) select top(3) }": "blocks",
    }
    for body, reason in reasons.items():
        op = attnc.loads(f"attention a {{ {body} }}")
        found = op.composite.selecting[""].ranking(0, 64, 64)
        assert isinstance(found, str), body
        assert reason in found, (body, found)
