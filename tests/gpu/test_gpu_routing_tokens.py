"""Single keys chosen and gathered on a GPU: choices, outputs, gradients, one graph, more heads than a tile has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import listed_cases
import pytest
import routed_cases
import torch
from torch import Tensor
from torch.testing import assert_close

import attnc
from attnc.routing.choice import Lists
from attnc.routing.choose import choose
from attnc.targets import target_of_device

pytestmark = pytest.mark.gpu
SPECS = Path(__file__).resolve().parent.parent.parent / "specs" / "routing"
INDEX = {"HEADS": 4, "WIDTH": 64}


@pytest.mark.parametrize("name", list(routed_cases.CHOICES))
@pytest.mark.parametrize("sizes", [(300, 777), (1, 5000)])
def test_choices(name: str, sizes: tuple[int, int], seed: int) -> None:
    """Exactly those of torch, ties and what is not finite included."""
    routed_cases.compare_choices(name, seed, *sizes, device="cuda")


@pytest.mark.parametrize("heads", listed_cases.HEADS)
@pytest.mark.parametrize("name", ["softmax", "sigmoid", "latent", "own groups", "two passes"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_gathered(name: str, heads: str, dtype: str, seed: int) -> None:
    data = listed_cases.listed(name, heads, dtype, seed, 150, device="cuda", M=70, N=500)
    listed_cases.compare(data, target_of_device("cuda"))


@pytest.mark.parametrize("heads", listed_cases.HEADS)
@pytest.mark.parametrize("name", ["softmax", "latent", "key bias"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_gradients(name: str, heads: str, dtype: str, seed: int) -> None:
    data = listed_cases.listed(name, heads, dtype, seed, 150, device="cuda", M=70, N=500)
    listed_cases.compare_gradients(data, target_of_device("cuda"))


@pytest.mark.parametrize("widths", [(128, 128), (576, 512)])
def test_many_heads_and_wide_ones(widths: tuple[int, int], seed: int) -> None:
    d, e = widths
    sizes = {"B": 1, "H": 72, "G": 1, "M": 40, "N": 900, "D": d, "E": e}
    data = listed_cases.listed("softmax", "", "bf16", seed, 300, device="cuda", **sizes)
    listed_cases.compare(data, target_of_device("cuda"))
    listed_cases.compare_gradients(data, target_of_device("cuda"))


def dsa(m: int, n: int, top: int, **index: int) -> tuple[attnc.Op, list[Tensor], dict[str, Tensor]]:
    """DeepSeek sparse attention, 8 heads on one key head."""
    op = attnc.load(SPECS / "dsa.attn", "dsa", constants={**INDEX, **index, "TOP": top})
    made = [torch.randn(1, h, size, 64, device="cuda", dtype=torch.bfloat16) for h, size in ((8, m), (1, n), (1, n))]
    heads, width = {**INDEX, **index}.values()
    inputs = {
        "index_q": torch.randn(1, heads, m, width, device="cuda", dtype=torch.bfloat16),
        "index_k": torch.randn(1, n, width, device="cuda", dtype=torch.bfloat16),
        "index_w": torch.rand(1, m, heads, device="cuda"),
    }
    return op, made, inputs


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("sizes", [(700, 1000), (1, 777)])
def test_deepseek_sparse_attention(gathers: bool, sizes: tuple[int, int]) -> None:
    """With the choice of torch in both, which rounds otherwise where ranks are nearly equal."""
    op, made, inputs = dsa(*sizes, 100)
    op.composite.gathers = gathers
    part, _ = op.composite.parts[0]
    values = op.composite.signature.bind(inputs)
    call, found = op.composite.chosen(*made, values)[""]
    assert isinstance(found[0].held, Lists)
    right = choose(call, part.body.mask, part.body.routes)[0].words
    words = found[0].words
    assert_close(
        (words ^ right).count_nonzero() / right.count_nonzero(), torch.zeros((), device="cuda"), atol=0.02, rtol=0
    )
    lists = op.composite.gathered[""]
    assert lists is not None
    given = lists.arguments(found[0], call)
    narrow, wide = ([x.to(dtype).requires_grad_() for x in made] for dtype in (torch.bfloat16, torch.float32))
    out = op(*narrow, **inputs)
    assert op.composite.used == {"": "gathered" if gathers else "masked"}
    exact = lists.op.reference(*wide, **given)
    cotangent = torch.randn_like(out)
    results = (out, *torch.autograd.grad(out, narrow, cotangent))
    due = (exact, *torch.autograd.grad(exact, wide, cotangent.float()))
    for x, y in zip(results, due, strict=True):
        assert_close(x.float(), y, rtol=2e-2, atol=2e-2 * float(y.abs().max()))


def test_one_graph() -> None:
    op, made, inputs = dsa(300, 500, 60)
    op.composite.gathers = True
    results: list[Any] = []
    cotangent = torch.randn_like(made[0])
    for call in (op, torch.compile(op, fullgraph=True)):
        leaves = [x.clone().requires_grad_() for x in made]
        out = call(*leaves, **inputs)
        results.append((out, *torch.autograd.grad(out, leaves, cotangent)))
    for x, y in zip(*results, strict=True):
        assert_close(x, y, rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings("ignore")
def test_sums_in_one_order_take_the_other_way() -> None:
    op, made, inputs = dsa(300, 900, 60)
    op.composite.gathers = True
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch itself has steps that it only warns of
    try:
        op(*made, **inputs)
        assert op.composite.used == {"": "gathered"}
        leaves = [x.clone().requires_grad_() for x in made]
        out = op(*leaves, **inputs)
        assert op.composite.used == {"": "masked"}
        grads = [torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for x, y in zip(*grads, strict=True):
        assert_close(x, y, rtol=0, atol=0)
