"""What a backend is. Adding one means one folder beside this file and one line in :mod:`attnc.targets`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from attnc.analyse.gradient.backward import Backward
    from attnc.analyse.key_ranking import KeyRanking
    from attnc.analyse.ranking import Ranking
    from attnc.ir.nodes import Node
    from attnc.plan import Plan


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of machine: ``cpu``, ``cuda`` with ``sm_80 | sm_90 | sm_100``, ``hip`` with ``gfx942``."""

    kind: str
    arch: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}" if self.arch else self.kind


@dataclass(frozen=True, slots=True)
class Workload:
    """What is static in a kernel besides the plan.

    ``dtype`` of q, k, v and the output is one of ``bf16 f16 f32 f64``. ``inputs`` holds the dtype of every input of
    the program in order (``bf16 f16 f32 f64 i32 i64 bool``). ``lse`` says whether the log-sum-exp is written too.
    Head widths are literals in the plan by now; ``B H G M N``, strides and extents are run-time numbers.
    """

    dtype: str
    inputs: tuple[str, ...]
    lse: bool
    saved: tuple[str, ...] = ()
    """Names of final states (statistics, accumulators) that a forward kernel writes too, for a backward."""
    unordered: bool = False
    """Whether a backward may add up in any order, so that the last bits differ from call to call."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Why a backend cannot run a plan: the sentence, and the node to underline."""

    message: str
    node: Node
    hint: str | None = None


Setting: TypeAlias = int | str
Config: TypeAlias = Mapping[str, Setting]
"""A setting for each choice of a :class:`Space`, by name; empty: the backend's own choice, which is the default."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that can be chosen. Integers stand in ascending order, and near ones are alike; words are not."""

    name: str
    settings: tuple[Setting, ...]


def _anything(config: Config) -> str | None:
    return None


def _itself(config: Config) -> Config:
    return config


@dataclass(frozen=True, slots=True)
class Space:
    """What can be chosen when a kernel is built; without choices there is nothing to tune.

    Attributes:
        choices: each with its settings.
        default: what the empty config amounts to wherever that fits; where a search begins.
        excluded: why a config cannot work, found on paper; ``None`` if it may work.
        settled: of all configs that make the same kernel, the one that stands for them.
    """

    choices: tuple[Choice, ...] = ()
    default: Config = field(default_factory=dict)
    excluded: Callable[[Config], str | None] = _anything
    settled: Callable[[Config], Config] = _itself

    def problem(self, config: Config) -> str | None:
        """Why ``config`` may not be built; ``None`` if it may. The empty one always may."""
        if not config:
            return None
        settings = {choice.name: choice.settings for choice in self.choices}
        if config.keys() != settings.keys():
            return f"it sets {sorted(config)}, the choices are {sorted(settings)}"
        for name, setting in config.items():
            if not any(type(setting) is type(known) and setting == known for known in settings[name]):
                return f"`{name}` cannot be {setting!r}"
        if (other := self.settled(config)) != config:
            return f"it says the same as {dict(other)}"
        return self.excluded(config)


class Unsavable(Exception):
    """A kernel that cannot be saved: it was not compiled."""


class Kernel(Protocol):
    """Compiled code for one plan, workload and target."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        extents: Sequence[int],
        out: Tensor,
        lse: Tensor | None,
        saved: Sequence[Tensor] = (),
    ) -> None:
        """Write ``out [B,H,M,E]`` (and ``lse [B,H,M]``) from q ``[B,H,M,D]``, k ``[B,G,N,D]``, v ``[B,G,N,E]``.

        ``lse`` is f64 where q is, else f32.
        ``saved`` are the tensors for the states of ``Workload.saved``: ``[B,H,M]`` for statistics, ``[B,H,M,width]``
        for accumulators, f32 (f64 if that is the dtype of q), relative to the final shift; 0 in rows without a key.

        Any strides, any sizes, M, N and B = 0 included. Shapes and dtypes were checked by the op.
        """
        ...

    @property
    def texts(self) -> Mapping[str, str]:
        """Readable by-products by file name: generated source, assembly."""
        ...

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Write what :meth:`Backend.load` needs into ``folder``; returns the JSON-able manifest entry.

        An entry ``missing`` that is not empty says what a kernel lacks to be run, such as its machine code.
        """
        ...


class BackwardKernel(Protocol):
    """Compiled code for one derived backward, workload and target."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        extents: Sequence[int],
        reads: Sequence[Tensor],
        results: Sequence[Tensor],
    ) -> None:
        """Write ``results``, one tensor for each of ``Backward.results`` and of its dims, every element.

        ``reads`` are the tensors for ``Backward.reads``: ``out`` and ``d_out`` in the dtype of q, ``d_lse`` and saved
        states as the forward wrote them. Results are of any floating dtype; those of scatters are f32 (or f64).
        """
        ...

    @property
    def texts(self) -> Mapping[str, str]:
        """Readable by-products by file name."""
        ...

    def save(self, folder: Path) -> Mapping[str, Any]:
        """As :meth:`Kernel.save`; :meth:`Backend.load_backward` reads it."""
        ...


class Selector(Protocol):
    """Compiled code that chooses single keys by their ranks."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        sizes: Mapping[str, int],
        numbers: Tensor,
        counts: Tensor,
    ) -> None:
        """Write ``numbers [B, heads, M, longest]``, the keys that each row chose in ascending order, and how many they
        are, ``counts [B, heads, M]``; both int32 and contiguous. What stands behind them is not written.

        ``sizes`` holds the extents of the call and ``count``, the length of the axis that ranks are summed over.
        """
        ...

    @property
    def texts(self) -> Mapping[str, str]:
        """Readable by-products by file name."""
        ...

    def save(self, folder: Path) -> Mapping[str, Any]:
        """As :meth:`Kernel.save`; :meth:`Choosing.load_selector` reads it."""
        ...


class Router(Protocol):
    """Compiled code for one ranking, workload and target."""

    def run(
        self,
        q: Tensor,
        k: Tensor,
        inputs: Sequence[Tensor],
        parameters: Sequence[float],
        extents: Sequence[int],
        numbers: Tensor,
        counts: Tensor,
    ) -> None:
        """Write what each query chooses: ``numbers [B, H, M, most]`` (int32, -1 after the last), ``counts [B, H, M]``.

        Tensors and sizes as in :meth:`Kernel.run`.
        """
        ...

    @property
    def texts(self) -> Mapping[str, str]:
        """Readable by-products by file name."""
        ...

    def save(self, folder: Path) -> Mapping[str, Any]:
        """As :meth:`Kernel.save`; :meth:`Backend.load_router` reads it."""
        ...


class Backend(Protocol):
    """Turns plans into kernels."""

    name: str
    codegen: int
    """Raised by hand when the same plan and config begin to yield other code than before."""
    spaces: int
    """Raised by hand when the spaces change."""
    families: tuple[str, ...]
    """The folders of ``attnc.templates`` whose code is in its kernels."""

    def problems(self, plan: Plan, workload: Workload, target: Target) -> Sequence[Unsupported]:
        """Everything in the plan that this backend cannot run on ``target``; empty if it can."""
        ...

    def build(self, plan: Plan, workload: Workload, target: Target, config: Config = MappingProxyType({})) -> Kernel:
        """Compile, with the settings of ``config``, a config of :meth:`space` without a problem.

        Needs no device: a kernel for another machine can be saved but not run.
        """
        ...

    def space(self, subject: Plan | Backward, workload: Workload, target: Target, sizes: Mapping[str, int]) -> Space:
        """What can be chosen for a plan or a backward. ``sizes`` are typical ones of a call, by name: ``B H G M N``."""
        ...

    def rejection(self, kernel: Kernel | BackwardKernel, target: Target) -> str | None:
        """Why the compiler's report says that a kernel built here cannot be good: it spills, or does not fit."""
        ...

    def load(self, folder: Path, manifest: Mapping[str, Any]) -> Kernel:
        """The kernel that :meth:`Kernel.save` wrote, without calling any compiler."""
        ...

    def backward_problems(self, backward: Backward, workload: Workload, target: Target) -> Sequence[Unsupported]:
        """Everything in the backward that this backend cannot run on ``target``; empty if it can."""
        ...

    def sums_groups(self, workload: Workload, target: Target) -> bool:
        """Whether walks of its backwards sum over the heads of a group: see :mod:`attnc.analyse.gradient.groups`."""
        ...

    def build_backward(
        self, backward: Backward, workload: Workload, target: Target, config: Config = MappingProxyType({})
    ) -> BackwardKernel:
        """Compile a backward. Its steps are not hoisted yet. ``workload`` is that of the forward."""
        ...

    def load_backward(self, folder: Path, manifest: Mapping[str, Any]) -> BackwardKernel:
        """The kernel that :meth:`BackwardKernel.save` wrote, without calling any compiler."""
        ...

    def router_problems(self, ranking: Ranking, workload: Workload, target: Target) -> Sequence[str]:
        """Everything in a ranking that this backend cannot do on ``target``; empty if it can choose."""
        ...

    def build_router(self, ranking: Ranking, workload: Workload, target: Target) -> Router:
        """Compile what chooses."""
        ...

    def load_router(self, folder: Path, manifest: Mapping[str, Any]) -> Router:
        """The kernel that :meth:`Router.save` wrote, without calling any compiler."""
        ...

    def regroups(self, plan: Plan) -> bool:
        """Whether the kernels of a plan, and of its backward, sort queries by the lists of blocks that its mask is."""
        ...

    def toolchain(self, target: Target) -> str:
        """Name and version of everything that decides what :meth:`build` yields, for cache keys."""
        ...


@runtime_checkable
class Choosing(Backend, Protocol):
    """A backend that also has kernels for choosing single keys; others leave that to torch."""

    def selector_problems(self, ranking: KeyRanking, workload: Workload, target: Target) -> Sequence[Unsupported]:
        """Everything in a ranking that this backend cannot run on ``target``; empty if it can."""
        ...

    def build_selector(self, ranking: KeyRanking, workload: Workload, target: Target) -> Selector:
        """Compile a choice of single keys."""
        ...

    def load_selector(self, folder: Path, manifest: Mapping[str, Any]) -> Selector:
        """The kernel that :meth:`Selector.save` wrote, without calling any compiler."""
        ...
