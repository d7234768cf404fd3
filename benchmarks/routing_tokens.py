"""Attention over single keys that queries chose (DeepSeek sparse attention) beside dense attention, step by step.

Causal, bf16, batch 1: 64 indexer heads of 128, the best 2048 keys of each query; 16 query heads of 128 on one key head,
and the latent shape, 128 query heads on one key head of 576 lanes whose first 512 are the values. Times are medians by
device events, in milliseconds; every one is written as soon as it is known. Errors of a small case come first, and
kernels are compiled before, in processes of their own. Writes ``results/routing_tokens.json``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import write
from routing import cudnn, milliseconds
from torch import Tensor

import attnc

SPECS = Path(__file__).resolve().parent.parent / "specs"
INDEX_HEADS, INDEX_WIDTH, TOP = 64, 128, 2048
SHAPES = {"16 heads": (16, 128, 128), "latent": (128, 576, 512)}
"""Query heads on one key head, and widths."""


def operator(shape: str, top: int = TOP) -> attnc.Op:
    text = (SPECS / "routing" / "dsa.attn").read_text()
    if shape == "latent":
        text = text.replace("mask causal", "mask causal value k[0:512]", 1)
    return attnc.loads(text, "dsa", constants={"TOP": top})


def dense_operator(shape: str) -> attnc.Op:
    return attnc.loads(f"attention dense {{ mask causal {'value k[0:512]' if shape == 'latent' else ''} }}")


def tokens(shape: str, n: int, m: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    heads, d, e = SHAPES[shape]
    q, k = (torch.randn(1, h, rows, d, device="cuda", dtype=torch.bfloat16) for h, rows in ((heads, m or n), (1, n)))
    return q, k, k[..., :e] if d != e else torch.randn_like(k)


def index(n: int, m: int | None = None) -> dict[str, Any]:
    return {
        "index_q": torch.randn(1, INDEX_HEADS, m or n, INDEX_WIDTH, device="cuda", dtype=torch.bfloat16),
        "index_k": torch.randn(1, n, INDEX_WIDTH, device="cuda", dtype=torch.bfloat16),
        "index_w": torch.rand(1, m or n, INDEX_HEADS, device="cuda"),
    }


def compile_all(what: str) -> float:
    """Everything that ``what`` needs, into the cache on disk, by small calls; returns seconds."""
    started = time.perf_counter()
    if what == "nsa":
        q, k, v = (torch.randn(1, h, 256, 128, device="cuda", dtype=torch.bfloat16) for h in (64, 4, 4))
        nsa(q, k, v, gate=torch.rand(1, 64, 256, 3, device="cuda"))
        return time.perf_counter() - started
    shape, step = what.split(", ")
    made = tokens(shape, 256)
    if step == "dense":
        dense = dense_operator(shape)
        leaves = [x.clone().requires_grad_(shape == "16 heads") for x in made]
        out = dense(*leaves)
        if shape == "16 heads":
            out.sum().backward()
        return time.perf_counter() - started
    op = operator(shape, 64)
    op.composite.gathers = True
    if step == "choices":
        op.composite.chosen(*made, op.composite.signature.bind(index(256)))
    elif step == "forward":
        with torch.no_grad():
            op(*made, **index(256))
    else:
        op(*(x.clone().requires_grad_() for x in made), **index(256)).sum().backward()
    return time.perf_counter() - started


def errors(shape: str) -> list[float]:
    """The largest errors over the largest values, of output and gradients, on the lists that kernels chose."""
    op = operator(shape, 300)
    op.composite.gathers = True
    made, given = tokens(shape, 1500, 200), index(1500, 200)
    call, found = op.composite.chosen(*made, op.composite.signature.bind(given))[""]
    gathered = op.composite.gathered[""]
    assert gathered is not None
    lists: dict[str, Any] = dict(gathered.arguments(found[0], call))
    narrow, wide = ([x.to(dtype).requires_grad_() for x in made] for dtype in (torch.bfloat16, torch.float32))
    out, exact = op(*narrow, **given), gathered.op.reference(*wide, **lists)
    assert op.composite.used == {"": "gathered"}
    cotangent = torch.randn_like(out)
    used = 2 if shape == "latent" else 3
    results = (out, *torch.autograd.grad(out, narrow[:used], cotangent))
    due = (exact, *torch.autograd.grad(exact, wide[:used], cotangent.float()))
    with torch.no_grad():
        return [round(float((x - y).abs().max() / y.abs().max()), 5) for x, y in zip(results, due, strict=True)]


def wrong_choices() -> float:
    """The share of keys that kernels choose otherwise than torch in float32, which adds up in another order."""
    from attnc.routing.choose import choose

    op, made, given = operator("16 heads", 300), tokens("16 heads", 1500, 200), index(1500, 200)
    call, found = op.composite.chosen(*made, op.composite.signature.bind(given))[""]
    part, _ = op.composite.parts[0]
    right = choose(call, part.body.mask, part.body.routes)[0]
    bits = torch.arange(32, device="cuda", dtype=torch.int32)
    differ = (((found[0].words ^ right.words)[..., None] >> bits) & 1).sum()
    return round(float(differ) / (2 * 300 * 200), 6)


def backward(call: Callable[..., Tensor], made: tuple[Tensor, ...], rounds: int) -> float:
    leaves = [x.detach().clone().requires_grad_() for x in made]
    out = call(*leaves)
    cotangent = torch.randn_like(out)
    pull = functools.partial(torch.autograd.grad, out, leaves, cotangent, retain_graph=True, allow_unused=True)
    return milliseconds(pull, rounds)


def nsa(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = attnc.load(SPECS / "routing" / "nsa.attn")(q, k, v, gate=gate)
    return out


Note = Callable[[str, int, object], None]


def figures(shape: str, n: int, rounds: int, note: Note) -> None:
    """All times of one shape and length, one after another."""
    op, dense = operator(shape), dense_operator(shape)
    made, given = tokens(shape, n), index(n)
    op.composite.gathers = True
    values = op.composite.signature.bind(given)
    gathered = op.composite.gathered[""]
    assert gathered is not None
    plain = shape == "16 heads"

    def forward(what: str, call: Callable[[], object]) -> None:
        note(f"{what}, {shape}, forward", n, milliseconds(call, rounds))

    with torch.no_grad():
        if plain:
            note("choosing", n, milliseconds(lambda: op.composite.chosen(*made, values), rounds))
        call, found = op.composite.chosen(*made, values)[""]
        lists = gathered.arguments(found[0], call)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = gathered.run(q, k, v, lists, {}, False)
            return out

        forward("gathering", lambda: attend(*made))
        forward("dense", lambda: dense(*made))
        if plain:
            q, k, v = made
            repeated = (q, k.expand_as(q), v.expand_as(q))
            forward("cudnn dense", lambda: cudnn(*repeated))
            forward("whole", lambda: op(q, k, v, **given))
    note(f"gathering, {shape}, backward", n, backward(attend, made, rounds))
    if plain:
        note(f"dense, {shape}, backward", n, backward(dense, made, rounds))


def measure(sizes: list[int], rounds: int, seconds: float, latent: list[int]) -> None:
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()

    def note(what: str, n: int, value: object) -> None:
        rows.append({"what": what, "tokens": n, "value": value, "at": round(time.perf_counter() - started, 1)})
        print(rows[-1], flush=True)
        write("routing_tokens", torch.device("cuda"), {"rounds": rounds, "top": TOP}, rows)

    steps = [f"{shape}, {step}" for shape in SHAPES for step in ("choices", "forward", "backward", "dense")]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(steps) + 1, mp_context=context) as pool:
        futures = {what: pool.submit(compile_all, what) for what in [*steps, "nsa"]}
        for what, future in futures.items():
            try:
                note(f"compiling, {what}", 0, round(future.result(), 1))
            except Exception as error:  # what does not compile is a figure too
                note(f"compiling, {what}", 0, f"failed: {str(error).splitlines()[-1][:200]}")
    note("share of keys chosen otherwise", 1500, wrong_choices())
    for shape in SHAPES:
        note(f"errors of output and gradients, {shape}", 1500, errors(shape))
    for shape, n in (*(("16 heads", n) for n in sizes), *(("latent", n) for n in latent)):
        if time.perf_counter() - started > seconds:
            return
        figures(shape, n, rounds, note)
        torch.cuda.empty_cache()
    if time.perf_counter() - started < seconds:
        n = sizes[-1]
        q, k, v = (torch.randn(1, h, n, 128, device="cuda", dtype=torch.bfloat16) for h in (64, 4, 4))
        gate = torch.rand(1, 64, n, 3, device="cuda")
        dense = dense_operator("16 heads")
        with torch.no_grad():
            note("dense, 64 heads on 4, forward", n, milliseconds(lambda: dense(q, k, v), rounds))
        note("nsa, 64 heads on 4, forward", n, milliseconds(lambda: nsa(q, k, v, gate), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--latent", type=int, nargs="*", default=[16384], help="lengths of the latent shape")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=150, help="begin no further length after so long")
    arguments = parser.parse_args()
    measure(arguments.sizes, arguments.rounds, arguments.seconds, arguments.latent)


if __name__ == "__main__":
    main()
