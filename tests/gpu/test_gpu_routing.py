"""Routes and branches on a GPU: both shapes of work, gradients, choices at their borders."""

from __future__ import annotations

from pathlib import Path

import block_routes
import pytest
import torch
from block_routes import ROUTES
from torch import Tensor
from torch.testing import assert_close

import attnc
from attnc.backends.protocol import Target
from attnc.backends.triton import call

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


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", ROUTES)
def test_kernels_choose_what_torch_does(name: str, dtype: str, seed: int) -> None:
    if dtype == "f16" and "sum(k)" in ROUTES[name].rank:
        pytest.skip("sums over a block may exceed float16: torch chooses")
    block_routes.compare_choice(name, dtype, seed, Target("cuda", "sm_90"), "cuda")


@pytest.mark.parametrize("name", ["moba", "ties"])
def test_many_tiles_of_blocks(name: str, seed: int) -> None:
    block_routes.compare_choice(name, "bf16", seed, Target("cuda", "sm_90"), "cuda", M=1000, N=5000, D=128)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["moba", "everything visible", "more taken than chosen", "inputs", "one row", "gate"])
def test_chosen_and_regrouped(name: str, dtype: str, seed: int) -> None:
    if dtype == "f32":
        block_routes.compare_operator(name, dtype, seed, "cuda")
        return
    data = block_routes.make(ROUTES[name], dtype, seed, "cuda")
    data.op.composite.regroups = True
    out = data.op(data.q, data.k, data.v, **data.inputs)
    right = data.op.reference(*(x.float() for x in (data.q, data.k, data.v)), **data.inputs)
    far = (out.float() - right).abs().amax(-1) > 2e-2 * float(right.abs().max())
    assert far.float().mean() < 0.01, "all but rows with a near tie"


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("sizes", [(1500, 1500), (700, 1111)])
def test_the_same_for_any_number_of_turns(groups: int, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads whose partial results do not fit together are taken one after the other; bits are the same, twice too."""
    op = attnc.load(SPECS / "moba.attn", "moba", constants={"BLOCK": 128, "TOP": 5})
    op.composite.regroups = True
    shapes = ((4, sizes[0]), (groups, sizes[1]), (groups, sizes[1]))
    given = [torch.randn(2, h, n, 128, device="cuda", dtype=torch.bfloat16).requires_grad_() for h, n in shapes]

    def run() -> list[Tensor]:
        out = op(*given)
        return [out, *torch.autograd.grad(out, given, torch.ones_like(out))]

    first, second = run(), run()
    monkeypatch.setattr(call, "TURN", 1)
    for a, b, c in zip(first, second, run(), strict=True):
        assert_close(a, b, rtol=0, atol=0)
        assert_close(a, c, rtol=0, atol=0)


def test_nothing_waits_for_the_device() -> None:
    op = attnc.load(SPECS / "moba.attn", "flash_moba")
    op.composite.regroups = True
    given = [x.requires_grad_() for x in tokens(1024, 1024)]
    for mode in ("default", "error"):  # the first call compiles and loads
        torch.cuda.set_sync_debug_mode(mode)
        try:
            out = op(*given)
            torch.autograd.grad(out, given, torch.ones_like(out))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("sizes", [(1024, 1024), (700, 1000), (1000, 1128)])
def test_blocks_chosen_together(block: int, sizes: tuple[int, int]) -> None:
    m, n = sizes
    spec = f"""attention a {{
        input w: int[B, H, (N - 1) // {block} - (N - M) // {block} + 1, (N + 32 * {block} - 1) // (32 * {block})]
        mask causal and w[b, h, i // {block} - (i - row) // {block}, j // {block} // 32] >> j // {block} % 32 & 1 == 1
    }}"""
    rows, words = (n - 1) // block - (n - m) // block + 1, -(-n // (32 * block))
    chosen = torch.randint(-(2**31), 2**31, (1, 4, rows, words), device="cuda").int()
    check(attnc.loads(spec), tokens(m, n), w=chosen)
