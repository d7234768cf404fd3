"""Routes and branches on a GPU: both shapes of work, gradients, choices at their borders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import attnc

pytestmark = pytest.mark.gpu
SPECS = Path(__file__).resolve().parent.parent.parent / "specs" / "routing"


def tokens(m: int, n: int) -> list[Tensor]:
    return [torch.randn(1, h, size, 64, device="cuda", dtype=torch.bfloat16) for h, size in ((4, m), (2, n), (2, n))]


def check(op: attnc.Op, given: list[Tensor], **arguments: object) -> None:
    """Output and gradients within a few thousandths of the largest value."""
    narrow, wide = ([x.to(dtype).requires_grad_() for x in given] for dtype in (torch.bfloat16, torch.float32))
    out, exact = op(*narrow, **arguments), op.reference(*wide, **arguments)
    cotangent = torch.randn_like(out)
    found = (out, *torch.autograd.grad(out, narrow, cotangent))
    for x, y in zip(found, (exact, *torch.autograd.grad(exact, wide, cotangent.float())), strict=True):
        assert_close(x.float(), y, rtol=2e-2, atol=2e-2 * float(y.detach().abs().max()))


@pytest.mark.parametrize("regroups", [True, False])
@pytest.mark.parametrize("sizes", [(700, 1000), (1, 777)])
def test_moba(regroups: bool, sizes: tuple[int, int]) -> None:
    op = attnc.load(SPECS / "moba.attn", "moba", constants={"BLOCK": 64, "TOP": 4})
    op.composite.regroups = regroups
    check(op, tokens(*sizes))


def test_branches_over_windows_and_blocks() -> None:
    op = attnc.load(SPECS / "nsa.attn", constants={"TOP": 4, "LOCAL": 100})
    check(op, tokens(500, 500), gate=torch.rand(1, 4, 500, 3, device="cuda"))


def test_blocks_given_from_outside_of_any_number() -> None:
    op = attnc.loads(
        "attention a { input blocks: int[B, H, M, 3] route keys(block=64) per query { select given(blocks) } }"
    )
    blocks = torch.randint(-9, 99, (1, 4, 300, 3), device="cuda")
    check(op, tokens(300, 500), blocks=blocks)
    assert not op(*tokens(300, 500), blocks=torch.full_like(blocks, 2**30)).any()
