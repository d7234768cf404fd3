"""What a config is asked for: one kernel of a program, and the sizes of the call that needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from attnc.backends.protocol import Backend, Config, Space, Target, Workload
from attnc.ir.program import Program

if TYPE_CHECKING:
    from attnc.analyse.gradient.backward import Backward
    from attnc.plan import Plan

Direction: TypeAlias = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Request:
    """One kernel of ``program``, for calls like one of ``sizes``.

    ``meaning`` is that of :class:`attnc.jit.Checked`: the canonical text, and the order of names in it.
    ``wants`` names the arguments whose gradients a backward gives; ``subject`` gives the plan or the backward.
    """

    program: Program
    meaning: tuple[Any, ...]
    direction: Direction
    wants: tuple[str, ...]
    widths: tuple[int, int]
    workload: Workload
    target: Target
    backend: Backend
    sizes: Mapping[str, int]
    subject: Callable[[], Plan | Backward]

    def space(self) -> Space:
        """What can be chosen."""
        return self.backend.space(self.subject(), self.workload, self.target, self.sizes)


Chooser: TypeAlias = Callable[[Request], Config]


def untuned(request: Request) -> Config:
    """The choice of the backend, always."""
    return MappingProxyType({})


def chooser(tune: str) -> Chooser:
    """The chooser of ``attnc.load(..., tune=...)``; what it needs is imported when a kernel is asked for."""
    if tune == "off":
        return untuned

    def choose(request: Request) -> Config:
        if not request.sizes:
            return {}
        if tune == "on":
            from attnc.autotune.session import tune_now

            return tune_now(request)
        if tune == "compatible":
            from attnc.autotune.nearby import compatible

            return compatible(request)
        from attnc.autotune import lookup

        return lookup.cached(request)

    return choose
