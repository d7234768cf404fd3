"""Running kernels in Triton's interpreter (``TRITON_INTERPRET=1``), on tensors in the memory of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
from torch import Tensor

from attnc.backends.triton.assembly import Lowered
from attnc.backends.triton.families import template
from attnc.backends.triton.module import import_source, write_source
from attnc.backends.triton.recipe import Arguments, Box, Value


def is_interpreting() -> bool:
    """Whether Triton's functions were made for the interpreter in this process."""
    import triton

    return bool(triton.knobs.runtime.interpret)


class Interpreter:
    """Executes the launches of a recipe one program after another."""

    def __init__(self, name: str, lowered: Lowered) -> None:
        self._launches = lowered.recipe.launches
        self._module = import_source(name, write_source(name, lowered.functions, lowered.library, lowered.walked))

    def __call__(self, at: int, programs: int, bind: Callable[[Value | Box], Tensor | int | float]) -> None:
        launch = self._launches[at]

        def bound(arguments: Arguments) -> Any:
            return tuple(map(bound, arguments)) if isinstance(arguments, tuple) else bind(arguments)

        values = {name: bound(tree) for name, tree in launch.arguments.items()}
        slots = {slot: getattr(self._module, name) for slot, name in launch.slots.items()}
        with numpy.errstate(all="ignore"):  # infinities and what masked pairs hold are discarded, as on a GPU
            template(launch.family)[(programs,)](**values, **launch.constants, **slots)
