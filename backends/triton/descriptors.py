"""Descriptors of tensors for copies by TMA, made by the driver's ``cuTensorMapEncodeTiled``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from attnc.backends.triton.recipe import ELEMENT_BYTES, Box

_BYTES = 128
_ALIGNED = 64
_ELEMENT = {"fp16": 6, "fp32": 7, "bf16": 9}
"""``CU_TENSOR_MAP_DATA_TYPE_FLOAT16``, ``_FLOAT32`` and ``_BFLOAT16``."""
_SWIZZLE = {0: 0, 32: 1, 64: 2, 128: 3}
_L2_PROMOTION_128_BYTES = 2
_MOST = 1024

CArray: TypeAlias = "ctypes.Array[ctypes.c_char]"
_Key: TypeAlias = "tuple[Box, int, tuple[int, ...], tuple[int, ...]]"


class Descriptors:
    """Descriptors by what they are made of. ``call`` calls an entry point of the driver."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call
        self._made: dict[_Key, tuple[CArray, int]] = {}

    def find(self, box: Box, tensor: Tensor) -> tuple[CArray, int]:
        """The memory of the descriptor of a tensor, and the address in it where it lies."""
        key = (box, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if key not in self._made:
            if len(self._made) >= _MOST:
                self._made.clear()
            self._made[key] = self._make(*key)
        return self._made[key]

    def _make(self, box: Box, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[CArray, int]:
        size, rank = ELEMENT_BYTES[box.type], len(box.block)
        extents = (*shape[:-1], box.valid or shape[-1])
        # the stride of a dimension of size 1 means nothing, but has to be a multiple of 16
        steps = [stride * size if n > 1 else 16 for n, stride in zip(extents, strides, strict=True)][:-1]
        room = ctypes.create_string_buffer(_BYTES + _ALIGNED)
        place = -(-ctypes.addressof(room) // _ALIGNED) * _ALIGNED
        self._call(
            "TensorMapEncodeTiled",
            ctypes.c_void_p(place),
            ctypes.c_int(_ELEMENT[box.type]),
            ctypes.c_uint32(rank),
            ctypes.c_void_p(address + box.lo * size),
            (ctypes.c_uint64 * rank)(*reversed(extents)),
            (ctypes.c_uint64 * rank)(*reversed(steps)),
            (ctypes.c_uint32 * rank)(*reversed(box.moved)),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            ctypes.c_int(0),  # no interleaving
            ctypes.c_int(_SWIZZLE[box.swizzle]),
            ctypes.c_int(_L2_PROMOTION_128_BYTES),
            ctypes.c_int(0),  # zeros outside
        )
        return room, place
