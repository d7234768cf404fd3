"""How a call's tensors and numbers reach a kernel: as one array of 64-bit words.

First what the threads share (:mod:`attnc.templates.tvm.head`), then ``B H G M N``, the extents, the bits of the
parameters as doubles, and of each tensor its address and strides in elements. One layout serves the code that packs
(:meth:`Layout.pack`) and the code that unpacks.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnc.templates.tvm.head import HEAD

if TYPE_CHECKING:
    from torch import Tensor

ENTRY = "attention"
"""Name of the compiled function."""

SIZES = ("B", "H", "G", "M", "N")

PARTS = "parts"
"""The dimension of how many parts a head has (:func:`attnc.templates.tvm.head.parts_of`)."""

KEY_PARTS = "key parts"
"""The same of the keys of a head with few rows (:func:`attnc.templates.tvm.head.key_parts_of`)."""
PARTIAL = "partial"
"""The tensor of the states of few rows: ``[KEY_PARTS, B, H, ...]``."""

_ZEROS = (ctypes.c_double * 64)()


@dataclass(frozen=True, slots=True)
class Layout:
    """Where what stands.

    Attributes:
        extents: names of the extents.
        parameters: how many there are.
        tensors: ``(name, rank)`` in order: q k v out, lse if written, inputs, token maps.
        phases: how many runs of the function make a call.
        room: bytes of scratch memory that each thread needs.
    """

    extents: tuple[str, ...]
    parameters: int
    tensors: tuple[tuple[str, int], ...]
    phases: int = 1
    room: int = 0

    def at_size(self, name: str) -> int:
        """Place of a size or extent."""
        return HEAD + (*SIZES, *self.extents).index(name)

    def at_parameter(self, number: int) -> int:
        """Place of a parameter."""
        return HEAD + len(SIZES) + len(self.extents) + number

    def at_tensor(self, name: str) -> int:
        """Place of the address of a tensor; its strides follow."""
        at = self.at_parameter(self.parameters)
        for other, rank in self.tensors:
            if other == name:
                return at
            at += 1 + rank
        raise KeyError(name)

    def pack(
        self,
        sizes: Sequence[int],
        extents: Sequence[int],
        tensors: Sequence[Tensor],
        parameters: Sequence[float],
        zeros: int = ctypes.addressof(_ZEROS),
    ) -> list[int]:
        """The words of a call, its head still 0. The tensors must outlive the call.

        A tensor without elements has strides of 0 and the address ``zeros`` of some zeros: every read of it is outside.
        """
        bits = struct.unpack(f"={len(parameters)}q", struct.pack(f"={len(parameters)}d", *parameters))
        words = [*([0] * HEAD), *sizes, *extents, *bits]
        for tensor in tensors:
            if tensor.numel():
                words += [tensor.data_ptr(), *tensor.stride()]
            else:
                words += [zeros, *(0 for _ in tensor.shape)]
        return words
