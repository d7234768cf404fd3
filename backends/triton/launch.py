"""Arguments of compiled kernels as Triton's calling convention has them, and their start."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnc.backends.driver import Driver
from attnc.backends.triton.descriptors import Descriptors
from attnc.backends.triton.recipe import Box, Value

_ROOM = 8
"""Bytes that one argument is given; those of fewer stand first, as the machine is little-endian."""
_ZERO = ctypes.c_int64(0)
_NOTHING = ctypes.addressof(_ZERO)


@dataclass(slots=True)
class Launcher:
    """Starts kernels of a driver; ``values`` are the arguments of each."""

    driver: Driver
    values: Sequence[tuple[Value | Box, ...]]
    _descriptors: Descriptors = field(init=False)
    _packers: list[struct.Struct] = field(init=False)

    def __post_init__(self) -> None:
        self._descriptors = Descriptors(self.driver.call)
        self._packers = [
            struct.Struct("<" + "".join(_format(one) for one in values if isinstance(one, Value)))
            for values in self.values
        ]

    def start(self, at: int, blocks: int, arguments: Sequence[Tensor | int | float], device: torch.device) -> None:
        """Launch kernel ``at`` on the current stream of ``device``."""
        packer = self._packers[at]
        memory = ctypes.create_string_buffer(packer.size)
        place = ctypes.addressof(memory)
        held: list[object] = []
        numbers: list[int | float] = []
        places: list[int] = []
        for value, argument in zip(self.values[at], arguments, strict=True):
            if isinstance(value, Box):
                assert isinstance(argument, Tensor), f"`{value.name}` is a tensor"
                room, descriptor = self._descriptors.find(value, argument)
                held.append(room)
                # Triton passes shape and strides along, which kernels that are given descriptors do not read
                places += [descriptor, *[_NOTHING] * (2 * len(value.block))]
            else:
                if isinstance(argument, Tensor):
                    numbers.append(argument.data_ptr())
                else:
                    numbers.append(argument if value.type == "fp32" else int(argument))
                places.append(place)
                place += _ROOM
        packer.pack_into(memory, 0, *numbers)
        places += [_NOTHING] * 2  # Triton's scratch memories, which these kernels do not use
        self.driver.start(at, blocks, places, device)


def _format(value: Value) -> str:
    """How :mod:`struct` packs an argument: addresses and ints as 64 bits, of which a kernel may read the lower 32."""
    return "f4x" if value.type == "fp32" else "q"
