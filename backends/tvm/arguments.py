"""How a call's tensors and numbers reach a kernel: as two arrays, one of integers and one of reals.

The integers are the bytes of scratch memory a thread needs, ``B H G M N``, the extents, and of each tensor its address
and strides in elements; the reals are the parameters. One layout serves the code that packs (:meth:`Layout.pack`) and
the code that unpacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ENTRY = "attention"
"""Name of the compiled function."""

SIZES = ("B", "H", "G", "M", "N")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where what stands. ``tensors`` are ``(name, rank)`` in order: q k v out, lse if written, inputs, token maps."""

    extents: tuple[str, ...]
    tensors: tuple[tuple[str, int], ...]
    parameters: int
    scratch: int = 0

    def at_size(self, name: str) -> int:
        """Place of a size or extent."""
        return 1 + (*SIZES, *self.extents).index(name)

    def at_tensor(self, name: str) -> int:
        """Place of the address of a tensor; its strides follow."""
        at = 1 + len(SIZES) + len(self.extents)
        for other, rank in self.tensors:
            if other == name:
                return at
            at += 1 + rank
        raise KeyError(name)

    def pack(
        self, sizes: Sequence[int], extents: Sequence[int], tensors: Sequence[Tensor], parameters: Sequence[float]
    ) -> tuple[Any, Any]:
        """The two arrays, as ctypes arrays. The tensors must outlive the call.

        A tensor without elements is given the address of some zeros and strides of 0: every read of it is outside.
        """
        import ctypes

        integers = [self.scratch, *sizes, *extents]
        for tensor in tensors:
            if tensor.numel():
                integers += [tensor.data_ptr(), *tensor.stride()]
            else:
                integers += [ctypes.addressof(_ZEROS), *(0 for _ in tensor.shape)]
        return (ctypes.c_int64 * len(integers))(*integers), (ctypes.c_double * max(1, len(parameters)))(*parameters)


def _zeros() -> Any:
    import ctypes

    return (ctypes.c_double * 64)()


_ZEROS = _zeros()
