"""What the specs say beyond their masks, written out as dense torch from the papers' definitions.

Every formula takes a context ``c``: ``q k v`` with a row a query head, ``dots`` their products ``[B,H,M,N]``, positions
``i [M,1]`` and ``j [N]``, ``seen [B,H,M,N]``, and the sizes, constants, parameters and inputs of the case by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Formula = Callable[[Any], Tensor]


def context(env: SimpleNamespace, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, inputs: dict[str, Tensor]) -> Any:
    """What the formulas read."""
    heads = env.H // env.G
    k, v = k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1)
    i = torch.arange(env.N - env.M, env.N)[:, None]
    j = torch.arange(env.N)
    return SimpleNamespace(**{**vars(env), **inputs}, q=q, k=k, v=v, dots=q @ k.mT, i=i, j=j, seen=seen)


def shares(c: Any, s: Tensor, extra: Tensor | float = 0.0) -> Tensor:
    """Softmax over the seen keys with ``extra`` more in the denominator; rows that see nothing are 0."""
    s = torch.where(c.seen, s, -math.inf)
    most = s.amax(-1, keepdim=True).clamp(min=0)
    weights = (s - most).exp()
    return weights / (weights.sum(-1, keepdim=True) + extra * (-most).exp()).clamp(min=1e-300)


def softmax(c: Any, s: Tensor) -> Tensor:
    return shares(c, s) @ c.v


def scaled(c: Any) -> Tensor:
    return c.dots / math.sqrt(c.D)


def per_head(x: Tensor) -> Tensor:
    """``[H]`` beside ``[B,H,M,N]``."""
    return x[:, None, None]


def plain(c: Any) -> Tensor:
    return softmax(c, scaled(c))


def rotate(x: Tensor, position: Tensor, base: Tensor | float = 10000.0) -> Tensor:
    """Half-split rotary embedding of all of ``x [B,H,T,D]``."""
    half = x.shape[-1] // 2
    base = torch.as_tensor(base, dtype=x.dtype).reshape(-1, 1, 1, 1)
    angle = position[:, None].to(x.dtype) * base ** (-torch.arange(half, dtype=x.dtype) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def rotated(c: Any, base: Tensor | float = 10000.0) -> Tensor:
    return rotate(c.q, c.i[:, 0], base) @ rotate(c.k, c.j, base).mT


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def rms(x: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6)


def gemma2(c: Any) -> Tensor:
    return softmax(c, 50 * torch.tanh(c.dots / 16 / 50))


def t5(c: Any, bidirectional: bool) -> Tensor:
    offset = c.j - c.i
    count = c.BUCKETS // 2 if bidirectional else c.BUCKETS
    first = count * (offset > 0) if bidirectional else 0
    distance = offset.abs() if bidirectional else (-offset).clamp(min=0)
    exact = count // 2
    growth = torch.log(distance.double() / exact) / math.log(c.FAR / exact) * (count - exact)
    far = (exact + growth.clamp(min=0).long()).clamp(max=count - 1)
    return softmax(c, c.dots + c.table[first + torch.where(distance < exact, distance, far)].permute(2, 0, 1))


def mla(c: Any) -> Tensor:
    return shares(c, c.dots / math.sqrt(c.HEAD_WIDTH)) @ c.k[..., : c.LATENT]


def mega(c: Any, activation: Formula) -> Tensor:
    count = c.seen.sum(-1, keepdim=True)
    return (c.seen * activation(c.dots / count + c.bias[c.j - c.i + c.SPAN - 1])) @ c.v


def laplace(x: Tensor) -> Tensor:
    mean, deviation = math.sqrt(0.5), math.sqrt(0.25 / math.pi)
    return 0.5 * (1 + torch.erf((x - mean) / (deviation * math.sqrt(2))))


def cog(c: Any) -> Tensor:
    return (scaled(c).sign() * shares(c, scaled(c).abs())) @ c.v


def affine(c: Any) -> Tensor:
    alpha = c.alpha[..., None]
    return (alpha * shares(c, scaled(c)) + c.seen * (c.average - alpha) / c.N) @ c.v


def inline(c: Any) -> Tensor:
    s = scaled(c)
    return ((s - s.mean(-1, keepdim=True) + 1) / c.N) @ c.v


def tapa(c: Any) -> Tensor:
    half = c.D // 2
    amplitude = c.q[..., :half] @ c.k[..., :half].mT / math.sqrt(half)
    phase = c.q[..., half:] @ c.k[..., half:].mT / math.sqrt(c.D - half)
    return softmax(c, amplitude * torch.cos(2 * math.pi * (c.i - c.j).abs().double() ** 0.1 * phase))


def ssa(c: Any) -> Tensor:
    value = c.v * c.value_temperature.repeat_interleave(c.H // c.G, 1)[..., None]
    return shares(c, scaled(c) * c.query_temperature[..., None]) @ value


def swin(c: Any) -> Tensor:
    def axis(i: Tensor, j: Tensor, n: int) -> tuple[Tensor, Tensor]:
        a, b = (i - c.SHIFT) % n, (j - c.SHIFT) % n
        regions = [torch.bucketize(x, torch.tensor([n - c.W, n - c.SHIFT]), right=True) for x in (a, b)]
        return a - b, regions[0] != regions[1]

    dy, apart_y = axis(c.i // c.X, c.j // c.X, c.Y)
    dx, apart_x = axis(c.i % c.X, c.j % c.X, c.X)
    bias = c.table[((dy + c.W - 1) * (2 * c.W - 1) + dx + c.W - 1).clamp(0, len(c.table) - 1)].permute(2, 0, 1)
    return softmax(c, scaled(c) + bias - 100.0 * (apart_y | apart_x))


def swin_v2(c: Any) -> Tensor:
    dy, dx = c.i // c.X - c.j // c.X, c.i % c.X - c.j % c.X
    bias = c.table[((dy + c.W - 1) * (2 * c.W - 1) + dx + c.W - 1).clamp(0, len(c.table) - 1)].permute(2, 0, 1)
    return softmax(c, unit(c.q) @ unit(c.k).mT * per_head(c.temperature.clamp(max=math.log(100)).exp()) + bias)


def maxvit(c: Any, slot: Callable[[Tensor, int], Tensor]) -> Tensor:
    dy = slot(c.j // c.X, c.Y) - slot(c.i // c.X, c.Y)
    dx = slot(c.j % c.X, c.X) - slot(c.i % c.X, c.X)
    last = 2 * c.P - 2
    return softmax(c, scaled(c) + c.bias[:, (dy + c.P - 1).clamp(0, last), (dx + c.P - 1).clamp(0, last)])


def adaptive_filter(c: Any) -> Tensor:
    q, k, v = rotate(c.q, c.i[:, 0]), rotate(c.k, c.j), rotate(c.v, c.j)
    time = c.time[:, None]
    rate = per_head(c.decay)
    fade = torch.exp(rate * (time[..., c.i[:, 0], None] - time[..., None, :]).abs())
    residual = (q[..., :, None, :] - fade[..., None] * k[..., None, :, :]).square().sum(-1)
    noise = per_head(c.sigma) * (1 - fade**2) / (-2 * rate) + per_head(c.eta) * fade**2 + per_head(c.gamma)
    s = -per_head(c.temperature) * (noise.log() + torch.log1p(residual / (per_head(c.freedom) * noise * c.D)))
    return rotate((shares(c, s) * fade) @ v, -c.i[:, 0])


def retnet(c: Any) -> Tensor:
    gamma = 1 - 2.0 ** (-5 - torch.arange(c.H, dtype=torch.float64))
    decay = torch.where(c.seen, per_head(gamma) ** (c.i - c.j).clamp(min=0), 0.0)
    s = scaled(c) * decay / decay.sum(-1, keepdim=True).sqrt()
    return (s / s.abs().sum(-1, keepdim=True).clamp(1, 5e4)) @ c.v


def based(c: Any) -> Tensor:
    s = scaled(c)
    weight = c.seen * (1 + s + s**2 / 2)
    return (weight / (weight.sum(-1, keepdim=True) + 1e-12)) @ c.v


def passed_gates(log_gates: Tensor, c: Any) -> Tensor:
    """The sum of the logarithms of the gates after a key and up to a query, ``[B,H,M,N]``."""
    total = log_gates.cumsum(-1)
    return torch.where(c.seen, total[..., c.i] - total[..., None, :], 0.0)


def lucid(c: Any) -> Tensor:
    keys = unit(c.k)
    system = torch.exp((keys @ keys.mT - 1) * math.sqrt(c.D)).tril()
    return shares(c, scaled(c)) @ torch.linalg.solve_triangular(system, c.v, upper=False)


FORMULAS: dict[str, Formula] = {
    "gemma2:local": gemma2,
    "gemma2:global": gemma2,
    "alibi": lambda c: softmax(c, scaled(c) - per_head(c.slope) * (c.i - c.j)),
    "t5:encoder": lambda c: t5(c, True),
    "t5:decoder": lambda c: t5(c, False),
    "rope": lambda c: softmax(c, rotated(c) / math.sqrt(c.D)),
    "attention_buckets": lambda c: softmax(c, rotated(c, c.base) / math.sqrt(c.D)),
    "qk_norm": lambda c: softmax(
        c,
        rotate(rms(c.q) * c.query_gain, c.i[:, 0], 1e6) @ rotate(rms(c.k) * c.key_gain, c.j, 1e6).mT / math.sqrt(c.D),
    ),
    "mla": mla,
    "gpt_oss:local": lambda c: shares(c, scaled(c), per_head(c.sink).exp()) @ c.v,
    "gpt_oss:global": lambda c: shares(c, scaled(c), per_head(c.sink).exp()) @ c.v,
    "softmax1": lambda c: shares(c, scaled(c), 1.0) @ c.v,
    "sigmoid": lambda c: torch.sigmoid(scaled(c) - math.log(c.N)) @ c.v,
    "relu:relu": lambda c: scaled(c).relu() @ c.v,
    "relu:by_length": lambda c: scaled(c).relu() @ c.v / c.N,
    "mega:laplace": lambda c: mega(c, laplace),
    "mega:relu2": lambda c: mega(c, lambda x: x.relu() ** 2),
    "cog": cog,
    "affine": affine,
    "inline": inline,
    "tapa": tapa,
    "ssa": ssa,
    "gated:elementwise": lambda c: plain(c) * c.gate.sigmoid(),
    "gated:headwise": lambda c: plain(c) * c.gate.sigmoid()[..., None],
    "freeswim": lambda c: softmax(c, c.dots * math.sqrt(math.log(3120, 1560) / c.D)),
    "swin": swin,
    "swin_v2": swin_v2,
    "maxvit:block": lambda c: maxvit(c, lambda x, n: x % c.P),
    "maxvit:grid": lambda c: maxvit(c, lambda x, n: x // (n // c.P)),
    "sahp": lambda c: softmax(c, c.dots.exp() / math.sqrt(c.D)),
    "attention_regulation": lambda c: softmax(c, scaled(c) + c.bias),
    "marginal": lambda c: softmax(c, scaled(c) + c.prior.clamp(min=1e-300).log()),
    "locality_dial": lambda c: softmax(c, scaled(c) - c.dial * (c.i - c.j).double() / 4),
    "adaptive_filter": adaptive_filter,
    "linear:linear": lambda c: (c.seen * scaled(c)) @ c.v,
    "linear:lightning": lambda c: (c.seen * c.dots * torch.exp(-per_head(c.slope) * (c.i - c.j).clamp(min=0))) @ c.v,
    "retnet": retnet,
    "based": based,
    "forgetting": lambda c: softmax(c, scaled(c) + passed_gates(c.log_gate, c)),
    "mamba2": lambda c: (c.seen * c.dots * passed_gates(c.log_decay, c).exp()) @ (c.v * c.dt[..., None]),
    "lucid": lucid,
}
"""Specs that are not here are softmax of the scaled products under their mask."""
