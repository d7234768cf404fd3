"""Arguments of compiled kernels as Triton's calling convention has them, and their start."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from attnc.backends.driver import Driver
from attnc.backends.triton.descriptors import Descriptors
from attnc.backends.triton.recipe import Box, Value

_ZERO = ctypes.c_int64(0)

CValue: TypeAlias = ctypes.c_void_p | ctypes.c_int32 | ctypes.c_int64 | ctypes.c_float


@dataclass(slots=True)
class Launcher:
    """Starts kernels of a driver; ``values`` are the arguments of each."""

    driver: Driver
    values: Sequence[tuple[Value | Box, ...]]
    _descriptors: Descriptors = field(init=False)

    def __post_init__(self) -> None:
        self._descriptors = Descriptors(self.driver.call)

    def start(self, at: int, blocks: int, arguments: Sequence[Tensor | int | float], device: torch.device) -> None:
        """Launch kernel ``at`` on the current stream of ``device``."""
        held: list[object] = []
        places: list[int] = []
        for value, argument in zip(self.values[at], arguments, strict=True):
            if isinstance(value, Box):
                assert isinstance(argument, Tensor), f"`{value.name}` is a tensor"
                room, place = self._descriptors.find(value, argument)
                held.append(room)
                # Triton passes shape and strides along, which kernels that are given descriptors do not read
                places += [place, *[ctypes.addressof(_ZERO)] * (2 * len(value.block))]
            else:
                held.append(number := _argument(value, argument))
                places.append(ctypes.addressof(number))
        places += [ctypes.addressof(_ZERO)] * 2  # Triton's scratch memories, which these kernels do not use
        self.driver.start(at, blocks, places, device)


def _argument(value: Value, argument: Tensor | int | float) -> CValue:
    match value.type:
        case "i32":
            return ctypes.c_int32(int(argument))
        case "i64":
            return ctypes.c_int64(int(argument))
        case "fp32":
            return ctypes.c_float(float(argument))
        case _:
            assert isinstance(argument, Tensor), f"`{value.name}` is a tensor"
            return ctypes.c_void_p(argument.data_ptr())
