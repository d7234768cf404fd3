"""Starting compiled kernels through the driver of CUDA or HIP, without any compiler in the process."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from attnc.backends.protocol import Target

_LIBRARIES = {
    "cuda": ("libcuda.so.1", "libcuda.so"),
    "hip": ("libamdhip64.so", "libamdhip64.so.6", "libamdhip64.so.7"),
}
_PREFIX = {"cuda": "cu", "hip": "hip"}
_MAX_DYNAMIC_SHARED = 8
_STATIC_SHARED = 48 * 1024


class DriverError(RuntimeError):
    """The driver is missing, or refused something."""


@dataclass(frozen=True, slots=True)
class Program:
    """One kernel to start: its code, its entry, and what a launch of it needs.

    ``shared`` is in bytes. A ``resident`` kernel takes its tiles itself: it is started once a multiprocessor at most.
    """

    code: bytes
    function: str
    shared: int
    threads: int
    resident: bool = False


@dataclass(slots=True)
class Driver:
    """The driver's entry points; kernels are loaded once a device, when they are first started."""

    target: Target
    programs: Sequence[Program]
    _library: ctypes.CDLL | None = None
    _functions: dict[tuple[int, int], ctypes.c_void_p] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, at: int, blocks: int, places: Sequence[int], device: torch.device) -> None:
        """Launch kernel ``at`` on the current stream of ``device``; ``places`` are the addresses of its arguments.

        Raises:
            DriverError: the kernels are for another GPU, or the driver refuses.
        """
        program = self.programs[at]
        index = device.index if device.index is not None else torch.cuda.current_device()
        self._enter(index)
        function = self._functions.get((at, index)) or self._load(at, index)
        if program.resident:
            blocks = min(blocks, torch.cuda.get_device_properties(index).multi_processor_count)
        pointers = (ctypes.c_void_p * len(places))(*places)
        stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        launch = "LaunchKernel" if self.target.kind == "cuda" else "ModuleLaunchKernel"
        self.call(
            launch, function, blocks, 1, 1, program.threads, 1, 1, program.shared, stream, pointers, ctypes.c_void_p(0)
        )

    def demand(self, device: torch.device) -> None:
        """Make sure that tensors are on a GPU.

        Raises:
            DriverError: they are not.
        """
        if device.type != "cuda":
            raise DriverError(f"kernels for {self.target} take tensors on a GPU, found {device}")

    def _load(self, at: int, index: int) -> ctypes.c_void_p:
        with self._lock:
            if (at, index) in self._functions:
                return self._functions[at, index]
            self._check_device(index)
            program = self.programs[at]
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            self.call("ModuleLoadData", ctypes.byref(module), program.code)
            self.call("ModuleGetFunction", ctypes.byref(function), module, program.function.encode())
            if program.shared > _STATIC_SHARED and self.target.kind == "cuda":
                self.call("FuncSetAttribute", function, _MAX_DYNAMIC_SHARED, program.shared)
            self._functions[at, index] = function
            return function

    def _enter(self, index: int) -> None:
        """Give this thread the device's context if it has none yet, as threads that have only allocated may not."""
        if self.target.kind == "hip":
            return
        context, device = ctypes.c_void_p(), ctypes.c_int()
        self.call("CtxGetCurrent", ctypes.byref(context))
        if not context.value:
            self.call("DeviceGet", ctypes.byref(device), index)
            self.call("DevicePrimaryCtxRetain", ctypes.byref(context), device)
            self.call("CtxSetCurrent", context)

    def _check_device(self, index: int) -> None:
        properties = torch.cuda.get_device_properties(index)
        if self.target.kind == "hip":
            here = str(getattr(properties, "gcnArchName", "no AMD GPU")).partition(":")[0]
            fits = here == self.target.arch
        else:
            here = f"sm_{properties.major}{properties.minor}"
            fits = here[:-1] == self.target.arch[:-1] and torch.version.hip is None
        if not fits:
            raise DriverError(f"these kernels are for {self.target}, the device is {properties.name} ({here})")

    def call(self, name: str, *arguments: object) -> None:
        """Call the entry point ``name``, without its prefix.

        Raises:
            DriverError: there is no driver, or it refuses.
        """
        if self._library is None:
            self._library = open_driver(self.target)
        full = _PREFIX[self.target.kind] + name
        code = getattr(self._library, full)(*arguments)
        if code != 0:
            raise DriverError(f"{full} failed: {self._reason(code)}")

    def _reason(self, code: int) -> str:
        if self.target.kind == "hip":
            return f"HIP error {code}"
        assert self._library is not None
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        return text.value.decode() if text.value else f"CUDA error {code}"


def open_driver(target: Target) -> ctypes.CDLL:
    """The library of the driver.

    Raises:
        DriverError: it is not on this machine.
    """
    for name in _LIBRARIES[target.kind]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DriverError(f"target `{target}` needs the driver library {_LIBRARIES[target.kind][0]}, which is not here")
