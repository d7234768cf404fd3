"""How a kernel cuts its work, and how numbers lie in shared memory."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.templates.tvm.cuda.block import GROUP, WARP
from attnc.templates.tvm.values import Value


@dataclass(frozen=True, slots=True)
class Shape:
    """How tiles are cut.

    Attributes:
        element: type of q, k, v in shared memory: ``bf16``, ``f16`` or ``f32``.
        warps: of a block.
        groups: of 16 rows that each warp has; what it reads of keys and values it multiplies with all of them.
        keys: of a tile; a multiple of 16.
    """

    element: str
    warps: int
    groups: int
    keys: int

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self.warps * self.groups * GROUP

    @property
    def held(self) -> range:
        """The rows that a thread holds a part of, numbered."""
        return range(2 * self.groups)

    def place(self, eight: Value, u: int, c: int, columns: int) -> Value:
        """Where a thread has what belongs to its row ``u``, and to column ``c`` of its two of eight of ``columns``."""
        return eight * 4 + (u // 2 * (columns // 2) + u % 2 * 2 + c)

    @property
    def threads(self) -> int:
        return self.warps * WARP

    @property
    def stored(self) -> str:
        """The type of TIR of an element."""
        return "float32" if self.element == "f32" else "uint16"

    @property
    def bytes(self) -> int:
        """Of an element."""
        return 4 if self.element == "f32" else 2

    @property
    def depth(self) -> int:
        """Elements of a row of the first factor that one instruction multiplies."""
        return 8 if self.element == "f32" else 16

    def padded(self, width: int) -> int:
        """A width in whole instructions, of either factor."""
        return -(-width // 16) * 16

    def pitch(self, width: int) -> int:
        """From row to row of a tile, in elements, so that the threads of a warp read from different banks."""
        return self.padded(width) + (4 if self.element == "f32" else 8)
