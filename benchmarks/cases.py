"""The attentions that are measured: each as a spec, and as what the peers need for the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
PairFunction = Callable[..., Tensor]

WINDOW = 1024
CAP = 30.0
DOCUMENTS = 12
"""Documents of a packed sequence."""
PAIRS = 2**23
"""How many pairs the reference computes when a result is checked."""


def _no_inputs(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    return {}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one measurement; as many queries as keys."""

    B: int
    H: int
    G: int
    N: int
    D: int


@dataclass(frozen=True, slots=True)
class Case:
    """One attention.

    Attributes:
        name: what the results call it.
        spec: our text.
        visible: how many pairs of an N x N square are visible, given the sizes and the inputs.
        inputs: makes the tensors that the spec declares.
        sdpa: keywords for :func:`torch.nn.functional.scaled_dot_product_attention`, if it can say this.
        score_mod: makes FlexAttention's score function of the inputs, if the score is not plain.
        mask_mod: the same for its mask.
        flex: whether FlexAttention can say this.
    """

    name: str
    spec: str
    visible: Callable[[Shape, Inputs], int]
    inputs: Callable[[Shape, torch.device], dict[str, Tensor]] = _no_inputs
    sdpa: Mapping[str, Any] | None = None
    score_mod: Callable[[Inputs], PairFunction] | None = None
    mask_mod: Callable[[Inputs], PairFunction] | None = None
    flex: bool = field(default=True)


def _square(shape: Shape, inputs: Inputs) -> int:
    return shape.N**2


def _triangle(shape: Shape, inputs: Inputs) -> int:
    return shape.N * (shape.N + 1) // 2


def _band(shape: Shape, inputs: Inputs) -> int:
    w = min(WINDOW, shape.N)
    return w * (w + 1) // 2 + (shape.N - w) * w


def _in_documents(shape: Shape, inputs: Inputs) -> int:
    lengths = torch.bincount(inputs["doc"][0].cpu().long())
    return int((lengths * (lengths + 1) // 2).sum())


def _slopes(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    return {"slope": torch.exp2(-8.0 * torch.arange(1, shape.H + 1, device=device) / shape.H)}


def _documents(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """One cut into documents of uneven length, for all rows of the batch."""
    generator = torch.Generator().manual_seed(7)
    count = min(DOCUMENTS, shape.N // 2)
    cuts = torch.randperm(shape.N - 1, generator=generator)[: count - 1] + 1
    doc = torch.zeros(shape.N, dtype=torch.int32).index_fill_(0, cuts, 1).cumsum(0, dtype=torch.int32)
    return {"doc": doc.expand(shape.B, shape.N).contiguous().to(device)}


def _causal(inputs: Inputs) -> PairFunction:
    return lambda b, h, i, j: i >= j


def _window(inputs: Inputs) -> PairFunction:
    return lambda b, h, i, j: (i >= j) & (i - j < WINDOW)


def _same_document(inputs: Inputs) -> PairFunction:
    doc = inputs["doc"]
    return lambda b, h, i, j: (i >= j) & (doc[b, i] == doc[b, j])


def _alibi(inputs: Inputs) -> PairFunction:
    slope = inputs["slope"]
    return lambda score, b, h, i, j: score - slope[h] * (i - j)


def _softcap(inputs: Inputs) -> PairFunction:
    return lambda score, b, h, i, j: CAP * torch.tanh(score / CAP)


CASES = (
    Case("full", "attention full {}", _square, sdpa={}),
    Case("causal", "attention causal { mask causal }", _triangle, sdpa={"is_causal": True}, mask_mod=_causal),
    Case(
        "window",
        f"attention window {{ mask causal and i - j < {WINDOW} }}",
        _band,
        mask_mod=_window,
    ),
    Case(
        "alibi",
        "attention alibi { input slope: real[H]  mask causal  score dot(q, k) * scale - slope[h] * (i - j) }",
        _triangle,
        _slopes,
        score_mod=_alibi,
        mask_mod=_causal,
    ),
    Case(
        "softcap",
        f"attention softcap {{ mask causal  score softcap(dot(q, k) * scale, {CAP}) }}",
        _triangle,
        score_mod=_softcap,
        mask_mod=_causal,
    ),
    Case("sigmoid", "attention sigmoid { normalize sigmoid(score - log(N)) }", _square, flex=False),
    Case(
        "documents",
        "attention documents { input doc: int[B, N]  mask causal and doc[b, i] == doc[b, j] }",
        _in_documents,
        _documents,
        mask_mod=_same_document,
    ),
)


def flops(case: Case, shape: Shape, inputs: Inputs) -> float:
    """Floating point operations of the two products over the visible pairs."""
    return 4.0 * shape.B * shape.H * shape.D * case.visible(shape, inputs)


def tensors(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v."""
    generator = torch.Generator(device).manual_seed(seed)

    def rand(heads: int) -> Tensor:
        size = (shape.B, heads, shape.N, shape.D)
        return torch.randn(size, generator=generator, dtype=dtype, device=device)

    return rand(shape.H), rand(shape.G), rand(shape.G)


def flex_call(case: Case, shape: Shape, inputs: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """Compiled FlexAttention for a case; its block mask is made here, outside what is timed."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    score_mod = case.score_mod(inputs) if case.score_mod else None
    block_mask = None
    if case.mask_mod:
        batch = shape.B if "doc" in inputs else None
        block_mask = create_block_mask(case.mask_mod(inputs), batch, None, shape.N, shape.N, device=str(q.device))
    compiled = torch.compile(flex_attention, dynamic=False)
    gqa = shape.H != shape.G
    return lambda: compiled(q, k, v, score_mod=score_mod, block_mask=block_mask, enable_gqa=gqa)


def sdpa_call(case: Case, shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor] | None:
    """Torch's own attention for a case; ``None`` where it cannot say it without an N x N mask."""
    if case.sdpa is None:
        return None
    keywords = {**case.sdpa, "enable_gqa": shape.H != shape.G}
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, **keywords)


def check(case: Case, op: Any, out: Tensor, q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) -> float:
    """Largest error of ``out`` in its last rows, as many as are cheap, against the reference in float32 or better.

    ``i`` stands on the key axis, so that the last queries alone are the same attention with a smaller M.

    Raises:
        AssertionError: an element is not finite, or the error is above what the element type explains.
    """
    assert out.isfinite().all(), f"{case.name}: not finite"
    wide = torch.float64 if out.device.type == "cpu" else torch.float32
    pairs_a_row = out.shape[0] * out.shape[1] * k.shape[2]
    rows = min(64, max(1, PAIRS // pairs_a_row))
    expected = op.reference(q[:, :, -rows:].to(wide), k.to(wide), v.to(wide), **inputs)
    error = float((out[:, :, -rows:].to(wide) - expected).abs().max())
    bound = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[out.dtype]
    assert error < bound * max(1.0, expected.abs().max().item()), f"{case.name}: error {error}"
    return error
