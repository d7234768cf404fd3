"""Rows of ``gpu.py`` as JSON, as tables for people, and as a plot."""

from __future__ import annotations

from typing import Any

import torch
from record import RESULTS, environment, write

NAMES = ("attnc", "ordered", "softmax", "cudnn", "flash", "flex")
TITLES = {"forward": "Forward", "backward": "Backward (gradients of q, k and v)"}


def save(name: str, device: torch.device, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write ``results/<name>.json`` and ``.md``."""
    write(name, device, settings, rows)
    facts = environment(device)
    lines = [
        f"# {facts['device']['name']}, {facts['date'][:10]}",
        "",
        f"torch {facts['packages']['torch']}, Triton {facts['packages']['triton']}, bf16, medians of "
        f"{settings['rounds']} interleaved rounds with a cold L2 cache. TFLOP/s over the visible pairs, 4 operations a "
        "pair and lane forward, 10 backward. `softmax` is ours of the same shape, `ordered` our backward with the same "
        "bits at every call.",
    ]
    if first := settings.get("first_result"):
        lines += ["", f"Load to first result, in a process of its own: {first['text']}."]
    for direction, title in TITLES.items():
        lines += ["", f"## {title}", "", *table([row for row in rows if row["direction"] == direction])]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    names = [name for name in NAMES if any(name in row.get("tflops", {}) for row in rows)]
    lines = [" | ".join(["| case", "B", "H/G", "N", "D", *names, "best peer |"]), "|---" * (len(names) + 6) + "|"]
    for row in rows:
        shape, rates = row["shape"], row.get("tflops", {})
        cells = [row["case"], str(shape["B"]), f"{shape['H']}/{shape['G']}", str(shape["N"]), str(shape["D"])]
        cells += [f"{rates[name]:.0f}" if name in rates else "-" for name in names]
        peers = [row["ratio"][name] for name in ("cudnn", "flash", "flex") if name in rates]
        cells.append(row["failed"][:60] if "failed" in row else f"{min(peers):.2f}" if peers else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def plot(name: str, rows: list[dict[str, Any]]) -> None:
    """Draw ``results/<name>.png``, where matplotlib is: rates of plain attention by length."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return
    shown = [row for row in rows if row["case"] in ("full", "causal") and row["shape"]["G"] == row["shape"]["H"]]
    panels = sorted({(row["direction"], row["shape"]["D"], row["case"]) for row in shown if "tflops" in row})
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.2), squeeze=False, sharey=True)
    for axis, (direction, width, case) in zip(axes[0], panels, strict=True):
        for peer in NAMES:
            points = sorted(
                (row["shape"]["N"], row["tflops"][peer])
                for row in shown
                if (row["direction"], row["shape"]["D"], row["case"]) == (direction, width, case)
                and peer in row.get("tflops", {})
            )
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=peer)
        axis.set(xscale="log", title=f"{case}, {direction}, D {width}", xlabel="keys")
    axes[0][0].set_ylabel("TFLOP/s")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    plt.close(figure)
