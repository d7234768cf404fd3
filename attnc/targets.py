"""Names of targets, and which backend serves which. A new backend is one line in :data:`BACKENDS`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from types import MappingProxyType

from attnc.backends.protocol import Backend, Target
from attnc.errors import TargetError, did_you_mean

KNOWN = ("cpu", "cpu:aarch64", "cuda", "cuda:sm_80", "cuda:sm_90", "cuda:sm_100", "hip:gfx942")
DEFAULT_ARCH = MappingProxyType({"cpu": "", "cuda": "sm_90", "hip": "gfx942"})


def _triton() -> Backend:
    from attnc.backends.triton import TritonBackend

    return TritonBackend()


def _tvm() -> Backend:
    from attnc.backends.tvm import TvmBackend

    return TvmBackend()


BACKENDS: dict[str, Callable[[], Backend]] = {"triton": _triton, "tvm": _tvm}
DEFAULT_BACKEND: Mapping[str, str] = MappingProxyType({"cpu": "tvm", "cuda": "triton", "hip": "triton"})
PACKAGES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"triton": ("triton", "attnc[gpu]"), "tvm": ("tvm", "attnc[cpu]")}
)
"""The module each backend needs, and what to install for it."""

_made: dict[str, Backend] = {}


def parse_target(text: str) -> Target:
    """The target that ``text`` names; ``cuda`` alone is the GPU of this machine, or sm_90 where there is none.

    Raises:
        TargetError: no such target.
    """
    if text not in KNOWN and text not in DEFAULT_ARCH:
        raise TargetError(f"unknown target `{text}`{did_you_mean(text, KNOWN)}; the targets are {', '.join(KNOWN)}")
    kind, _, arch = text.partition(":")
    if kind == "cuda" and not arch:
        arch = _arch_here() or DEFAULT_ARCH["cuda"]
    return Target(kind, arch or DEFAULT_ARCH[kind])


def target_of_device(device_type: str) -> Target:
    """The target for tensors on a torch device of this type on this machine.

    Raises:
        TargetError: no kernels exist for such devices.
    """
    import torch

    match device_type:
        case "cpu":
            return Target("cpu")
        case "cuda" if torch.version.hip:
            arch = torch.cuda.get_device_properties(torch.cuda.current_device()).gcnArchName
            return Target("hip", arch.partition(":")[0])
        case "cuda":
            return Target("cuda", _arch_here() or DEFAULT_ARCH["cuda"])
        case _:
            raise TargetError(f"there are no kernels for tensors on `{device_type}`, only for `cpu` and `cuda`")


def backend_for(target: Target, name: str | None = None, compiles: bool = True) -> Backend:
    """The backend called ``name``, or the default one of ``target``.

    ``compiles`` says whether its compiler is needed; kernels that were saved are loaded without.

    Raises:
        TargetError: no such backend, or what it needs is not installed.
    """
    chosen = name or DEFAULT_BACKEND[target.kind]
    if chosen not in BACKENDS:
        raise TargetError(
            f"unknown backend `{chosen}`{did_you_mean(chosen, BACKENDS)}; the backends are {', '.join(BACKENDS)}"
        )
    if compiles and (missing := missing_package(chosen)):
        module, install = missing
        raise TargetError(
            f"target `{target}` is served by the {chosen} backend, which needs the package `{module}`: "
            f"pip install '{install}'",
            missing=True,
        )
    if chosen not in _made:
        _made[chosen] = BACKENDS[chosen]()
    return _made[chosen]


def missing_package(backend: str) -> tuple[str, str] | None:
    """The module that ``backend`` lacks and what to install for it; ``None`` if it lacks nothing."""
    module, install = PACKAGES.get(backend, ("", ""))
    return (module, install) if module and importlib.util.find_spec(module) is None else None


def _arch_here() -> str | None:
    """``sm_90`` and the like of the current CUDA device, as far as it is known; ``None`` without one."""
    import torch

    if not torch.cuda.is_available() or torch.version.hip:
        return None
    major, _minor = torch.cuda.get_device_capability()
    return f"sm_{major}0"
