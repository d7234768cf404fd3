"""Which of the assemblers that Triton ships turns PTX into machine code.

``ptxas`` before 12.9 miscompiles loops with many descriptors of ``wgmma``: a descriptor is read from a uniform register
that nothing wrote, so that sums are wrong or memory outside is read (docs/adr/0010). Triton 3.6 has 12.8 for Hopper and
12.9 for Blackwell; both can do either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SOUND = (12, 9)
"""The first release without the fault."""


def assembler(capability: int) -> Any:
    """Triton's tool (``path``, ``version``) for compute capability ``capability``, 90 for sm_90.

    The oldest sound one, since older drivers load what it makes; where none is sound, the newest.
    """
    import triton

    tools = triton.knobs.nvidia
    own, other = tools.ptxas, tools.ptxas_blackwell
    if capability >= 100:
        return other
    sound = [tool for tool in (own, other) if _release(tool) >= SOUND]
    return min(sound, key=_release) if sound else max((own, other), key=_release)


@contextmanager
def sound_assembler(capability: int) -> Iterator[None]:
    """While this lasts, Triton assembles with :func:`assembler`."""
    import triton

    tool = assembler(capability)
    with triton.knobs.nvidia.scope():
        if capability < 100:
            triton.knobs.nvidia.ptxas = tool.path
        yield


def _release(tool: Any) -> tuple[int, ...]:
    return tuple(map(int, tool.version.split(".")))
