"""A small character language model, trained with three attentions from ``tiny.attn``; no gradient is written by hand.

Each model is trained twice from the same weights on the same batches, once with compiled kernels and once with
``op.reference`` and torch's autograd through it. Their losses must agree step by step. The text is Python's own
language reference, as ``help()`` shows it. The curves go to ``train_tiny.png``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import attnc

SPEC = Path(__file__).resolve().with_name("tiny.attn")
NAMES = ("alibi", "sigmoid", "cog")
LAYERS, HEADS, WIDTH, LENGTH, BATCH = 2, 4, 64, 48, 8
TOLERANCE = 2e-3
"""Between two losses of the same step, near 3: the rounding of float32, and what training makes of it."""


class Attention(nn.Module):
    """Heads of ``attend``, with learned slopes if it has any."""

    def __init__(self, attend: Callable[..., Any], slopes: bool) -> None:
        super().__init__()
        self.attend = attend
        self.slope = nn.Parameter(2.0 ** -torch.arange(1.0, HEADS + 1)) if slopes else None
        self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.into(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        given = {} if self.slope is None else {"slope": self.slope}
        y: Tensor = self.out(self.attend(q, k, v, **given).transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        y: Tensor = x + self.mlp(self.second(x))
        return y


class Model(nn.Module):
    """Characters in, scores of the next character out."""

    def __init__(self, characters: int, attend: Callable[..., Any], slopes: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block(Attention(attend, slopes)) for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters))

    def forward(self, text: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(self.embed(text) + self.place.weight))
        return scores


@dataclass(frozen=True, slots=True)
class Curve:
    """The loss of every step, in nats a character, and the seconds they took."""

    losses: list[float]
    seconds: float


def read_text() -> tuple[Tensor, int]:
    """The text as numbers, and how many different characters it has."""
    text = "".join(c for c in "\n".join(topics.values()) if c.isascii())
    known = {c: at for at, c in enumerate(sorted(set(text)))}
    return torch.tensor([known[c] for c in text]), len(known)


def train(model: Model, text: Tensor, steps: int) -> Curve:
    """Train on random pieces of the text, the same ones each time."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    begun = time.perf_counter()
    for _ in range(steps):
        at = torch.randint(len(text) - LENGTH - 1, (BATCH, 1), generator=generator)
        piece = text[at + torch.arange(LENGTH + 1)]
        loss = cross_entropy(model(piece[:, :-1]).flatten(0, 1), piece[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Curve(losses, time.perf_counter() - begun)


def trained(name: str, text: Tensor, characters: int, steps: int) -> tuple[Curve, Curve]:
    """Training with kernels, and with the reference."""
    op = attnc.load(SPEC, name)
    slopes = "slope" in {source.name for source in op.program.inputs}
    curves = []
    for attend in (op, op.reference):
        torch.manual_seed(0)
        curves.append(train(Model(characters, attend, slopes), text, steps))
    return curves[0], curves[1]


def plot(curves: dict[str, tuple[Curve, Curve]], path: Path) -> bool:
    """Draw the curves; false where matplotlib is not installed."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return False
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, (ours, reference) in curves.items():
        (line,) = axes.plot(ours.losses, label=name)
        axes.plot(reference.losses, ":", color=line.get_color(), linewidth=3, alpha=0.5)
    axes.set(xlabel="step", ylabel="loss (nats a character)", title="lines: derived kernels; dots: the reference")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return True


def main(
    steps: Annotated[int, typer.Option(help="Steps of training, for each of the models.")] = 300,
    output: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("train_tiny.png"),
) -> None:
    """Train, compare and draw; exit code 1 if a loss does not fall, or differs from the reference's."""
    torch.set_num_threads(1)  # sharing out work this small costs more than the work
    console = Console()
    text, characters = read_text()
    console.print(f"{len(text)} characters of {characters} kinds; {LAYERS} layers, {HEADS} heads, {steps} steps\n")
    curves: dict[str, tuple[Curve, Curve]] = {}
    good = True
    table = Table("attention", "first loss", "last loss", "largest difference", "seconds", "reference's seconds")
    for name in NAMES:
        with console.status(f"training with {name}"):
            ours, reference = curves[name] = trained(name, text, characters, steps)
        few = max(1, min(10, steps // 4))
        first, last = sum(ours.losses[:few]) / few, sum(ours.losses[-few:]) / few
        apart = max(abs(a - b) for a, b in zip(ours.losses, reference.losses, strict=True))
        good &= last < first and apart < TOLERANCE
        table.add_row(
            name, f"{first:.4f}", f"{last:.4f}", f"{apart:.1e}", f"{ours.seconds:.1f}", f"{reference.seconds:.1f}"
        )
    console.print(table)
    console.print(f"curves: {output}" if plot(curves, output) else "no plot: matplotlib is not installed")
    console.print("[green]losses fall, and are the reference's[/]" if good else "[red]losses do not agree[/]")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    typer.run(main)
