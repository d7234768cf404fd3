"""A request that can be sent to another process: everything that compiling and measuring one kernel takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from attnc.autotune.request import Chooser, Direction, Request
from attnc.backends.protocol import BackwardKernel, Config, Kernel, Target, Workload
from attnc.errors import TargetError
from attnc.ir.printer import print_program
from attnc.ir.program import Program
from attnc.jit import Checked, JustInTime
from attnc.runtime import Training


@dataclass(frozen=True)
class Problem:
    """One kernel to tune.

    Attributes:
        checked: the program.
        backend: its name.
        direction: which kernel of the program.
        wants: the arguments whose gradients are needed; empty for a forward that saves nothing for a backward.
        widths: ``(D, E)``.
        workload: as calls without gradients give it: no saved states.
        sizes: ``B H G M N`` and extents of the calls that are measured.
        tensors: the path of a file with the call to measure; random tensors where it is empty.
    """

    checked: Checked
    backend: str
    target: Target
    direction: Direction
    wants: tuple[str, ...]
    widths: tuple[int, int]
    workload: Workload
    sizes: Mapping[str, int]
    tensors: str = ""

    @property
    def program(self) -> Program:
        return self.checked.program

    @classmethod
    def of(cls, request: Request) -> Problem:
        """The problem behind a request."""
        return cls(
            Checked(request.program, request.meaning),
            request.backend.name,
            request.target,
            request.direction,
            request.wants,
            request.widths,
            replace(request.workload, saved=()),
            dict(request.sizes),
        )

    def request(self) -> Request:
        """The request as the run time makes it, so that both look up the same key.

        Raises:
            TargetError: there is no such kernel.
        """

        def ask(request: Request) -> Config:
            if request.direction == self.direction:
                raise _Asked(request)
            return {}

        try:
            self.kernel(ask)
        except _Asked as asked:
            return asked.request
        raise AssertionError("a kernel is not made without asking for its config")

    def kernel(self, choose: Chooser) -> Kernel | BackwardKernel:
        """The kernel with the config that ``choose`` gives."""
        if not self.wants:
            return self._source(choose).kernel(self.widths, self.workload, self.target, self.sizes)
        training = self.training(choose)
        return training.forward(self.sizes) if self.direction == "forward" else training.pullback(self.sizes)

    def training(self, choose: Chooser) -> Training:
        """Both kernels of training.

        Raises:
            TargetError: no backward is derived or compiled for this.
        """
        found = self._source(choose).training(self.widths, self.wants, self.workload, self.target)
        if isinstance(found, str):
            raise TargetError(f"`{self.program.name}` has no compiled backward: {found}")
        return found

    def training_saves(self, wants: tuple[str, ...]) -> bool:
        """Whether training for these gradients has a forward of its own, which saves states."""
        return bool(replace(self, wants=wants).training(lambda request: {}).backward.saved)

    def with_config(self, config: Config) -> Chooser:
        """Choose ``config`` for the kernel of this problem, and defaults for others."""
        return lambda request: config if request.direction == self.direction else {}

    def _source(self, choose: Chooser) -> JustInTime:
        return JustInTime(self.checked, self.backend, choose)

    def to_json(self) -> dict[str, Any]:
        """What :func:`problem_from_json` reads."""
        return {
            "program": print_program(self.program),
            "backend": self.backend,
            "target": [self.target.kind, self.target.arch],
            "direction": self.direction,
            "wants": list(self.wants),
            "widths": list(self.widths),
            "workload": asdict(self.workload),
            "sizes": dict(self.sizes),
            "tensors": self.tensors,
        }


def problem_from_json(data: Mapping[str, Any], checked: Callable[[str], Checked]) -> Problem:
    """What :meth:`Problem.to_json` wrote; ``checked`` reads programs."""
    workload: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in data["workload"].items()}
    d, e = data["widths"]
    return Problem(
        checked(data["program"]),
        data["backend"],
        Target(*data["target"]),
        data["direction"],
        tuple(data["wants"]),
        (d, e),
        Workload(**workload),
        data["sizes"],
        data["tensors"],
    )


class _Asked(Exception):
    def __init__(self, request: Request) -> None:
        super().__init__("asked")
        self.request = request
