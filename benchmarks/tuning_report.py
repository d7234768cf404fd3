"""What a run of ``tuning.py`` knows so far, and the three files that say it."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnc.autotune.bundle import write_bundle
from attnc.autotune.record import Observation
from attnc.autotune.store import Store


@dataclass(slots=True)
class Results:
    """All that is known so far, and the three files that say it."""

    out: Path
    store: Store
    environment: dict[str, Any]
    ends: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    surveys: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    begun: float = field(default_factory=time.monotonic)

    def left(self, reserve: float = 0.0) -> float:
        """Seconds until the end, less what must stay for what comes later."""
        return self.ends - reserve - time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:5.0f} s  {text}", flush=True)

    def write(self) -> None:
        """The files, as of now."""
        content = {
            "environment": self.environment,
            "rows": self.rows,
            "surveys": self.surveys,
            "failures": self.failures,
        }
        (self.out / "tuning.json").write_text(json.dumps(content, indent=1) + "\n")
        (self.out / "tuning.md").write_text(markdown(content))
        write_bundle(self.out / "records.jsonl", filter(_is_lasting, self.store.all()))

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and show it."""
        with self.lock:
            self.rows.append(row)
            self.write()
            shown = " ".join(f"{name}={row[name]}" for name in ("default_us", "speedup", "again", "trials", "wall_s"))
            self.say(f"{row['what']}: {shown}  {row['config'] or 'default'}")

    def fail(self, what: str, error: BaseException) -> None:
        """Keep what went wrong, and go on."""
        with self.lock:
            self.failures.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
            self.write()
            self.say(f"failed: {self.failures[-1]}")


def _is_lasting(one: object) -> bool:
    """Whether look-ups need a record: what ranks, and what must never win."""
    return isinstance(one, Observation) and (one.stage == "final" or one.status == "wrong")


def markdown(content: dict[str, Any]) -> str:
    """The figures as tables."""
    device, packages = content["environment"]["device"], content["environment"]["packages"]
    lines = [f"{device['name']}, {content['environment']['date']}, {packages}", ""]
    lines += ["| what | default µs | tuned / default | measured again | config | trials | rejected | failed "]
    lines[-1] += "| compile core s | measure s | wall s | begun |"
    lines += ["|" + "---|" * 12]
    names = ("default_us", "speedup", "again", "config", "trials", "rejected", "failed", "compile_core_s", "measure_s")
    for row in content["rows"]:
        cells = [row["what"], *(str(row[name]) or "the default" for name in (*names, "wall_s"))]
        lines.append("| " + " | ".join([*cells, "cold" if row["cold"] else "seeds"]) + " |")
    for name, one in content["surveys"].items():
        if "a_tenth" not in one:  # measured, and not replayed yet
            continue
        lines += ["", f"## {name}: {one['configs']} configs, {one['rejected_or_failed']} rejected or failed", ""]
        lines += [
            f"Best: {one['best']}, {one['best_over_default']} times the default; compiling took "
            f"{one['compile_core_s']} core s, measuring {one['measure_s']} s. Found / best over 12 replays:",
            "",
            "| begun with | trials | median | nine of ten reach | least |",
            "|---|---|---|---|---|",
        ]
        runs = {"nothing (a tenth of the space)": one["a_tenth"]}
        for found in one["transfer"].values():
            runs |= {f"{begun} ({figures['trials']})": figures for begun, figures in found.items()}
        for begun, figures in runs.items():
            lines.append(
                f"| {begun} | {figures['trials']} | {figures['median']} | {figures['p10']} | {figures['least']} |"
            )
    lines += ["", *(f"- {text}" for text in content["failures"]), ""]
    return "\n".join(lines)
