"""A backend for the tuner: the reference, with ways of being slow, wrong and dangerous; and workers that have it."""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fake_backend import NOTHING, FakeBackend, FakeKernel
from torch import Tensor

from attnc import targets
from attnc.analyse.gradient.backward import Backward
from attnc.analyse.lower import stream_program
from attnc.backends.protocol import Choice, Config, Space, Target, Workload
from attnc.plan import Plan

MILLISECONDS = {"usual": 40.0, "good": 5.0, "slow": 80.0, "fast": 1.0}
WAYS = ("usual", "good", "slow", "wrong", "wrong_later", "outside", "hang", "crash", "refused", "broken", "hang_early")


class ToyKernel(FakeKernel):
    """The reference, then what its ``way`` says."""

    def __init__(self, plan: Plan, saved: tuple[str, ...], way: str) -> None:
        super().__init__(plan, saved)
        self.way = way

    def run(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **more: Any) -> None:
        super().run(q, k, v, *rest, **more)
        out: Tensor = rest[3]
        match self.way:
            case "wrong":
                out[..., -1] = 0.0
            case "wrong_later" if q.shape[2] > 100:
                out[..., -1] = 0.0
            case "outside":
                out.as_strided((3,), (1,), out.storage_offset() + out.numel()).zero_()
            case "hang":
                time.sleep(1000)
            case "crash":
                ctypes.string_at(0)
        time.sleep(MILLISECONDS.get(self.way, MILLISECONDS["fast"]) / 1000)

    def save(self, folder: Path) -> Mapping[str, Any]:
        (folder / "plan.pickle").write_bytes(pickle.dumps((self.plan, self.saved, self.way)))
        return {"file": "plan.pickle", "way": self.way}


class ToyBackend(FakeBackend):
    """``way`` is a word and decides; ``size`` is a number, and does nothing but make the space larger."""

    name = "toy"

    def build(self, plan: Plan, workload: Workload, target: Target, config: Config = NOTHING) -> ToyKernel:
        way = str(config.get("way", os.environ.get("TOY_DEFAULT", "usual")))
        if way == "broken":
            raise RuntimeError("no such instruction")
        if way == "hang_early":
            time.sleep(1000)
        return ToyKernel(stream_program(plan.program, keep_detach=True), workload.saved, way)

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> ToyKernel:
        return ToyKernel(*pickle.loads((folder / manifest["file"]).read_bytes()))

    def space(self, subject: Plan | Backward, workload: Workload, target: Target, sizes: Mapping[str, int]) -> Space:
        ways = tuple(os.environ.get("TOY_WAYS", " ".join(WAYS)).split())

        def excluded(config: Config) -> str | None:
            return "on paper" if config["size"] == 4 or (config["size"] == 2 and config["way"] != "good") else None

        return Space((Choice("way", ways), Choice("size", (1, 2, 4))), {"way": "usual", "size": 1}, excluded)

    def rejection(self, kernel: Any, target: Target) -> str | None:
        return "it spills" if kernel.way == "refused" else None


def worker_command() -> Sequence[str]:
    """How to start a worker that has this backend."""
    tests = str(Path(__file__).parent)
    return sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r}); import toy_backend; toy_backend.serve()"


def serve() -> None:
    """Be a worker."""
    from attnc.autotune.worker import main

    torch.set_num_threads(1)
    targets.BACKENDS["toy"] = ToyBackend
    main()
