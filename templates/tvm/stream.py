"""The ``stream`` and ``twopass`` families: tiles of rows, each walking over its visible keys tile by tile.

A task is one tile of query rows of one head; tasks are spread over the cores. What a spec decides comes in through
:class:`~attnc.templates.tvm.walk.Slots`; everything else, the order of loops, what lies in cache and when, is here.
"""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.few import ROWS, FewRows
from attnc.templates.tvm.many import ManyRows
from attnc.templates.tvm.products import Shape
from attnc.templates.tvm.tasks import Tasks
from attnc.templates.tvm.tile import Tile
from attnc.templates.tvm.values import minimum
from attnc.templates.tvm.walk import Sizes, Slots


def stream(shape: Shape, slots: Slots, sizes: Sizes, tasks: Tasks, *, few: bool = True) -> None:
    """The whole kernel: a parallel loop over tiles of rows, later rows first, since they often see more keys.

    ``few`` says whether there is code of its own for tiles of few rows, as in decoding.
    """
    tiles = ((sizes.M + (shape.rows - 1)) // shape.rows).keep()
    with tasks.dealt(sizes.B * sizes.H * tiles) as (task, scratch):
        head = (task // tiles).keep()
        row = ((tiles - 1 - task % tiles) * shape.rows).keep()
        count = minimum(sizes.M - row, shape.rows).keep()

        def tile(kind: type[Tile], vectors: int, rows: int) -> None:
            with scratch.shared():
                task_slots = slots.task((head // sizes.H).keep(), (head % sizes.H).keep(), scratch)
                kind(shape, slots, task_slots, sizes, scratch, row, count, vectors, rows).run()

        if few:
            with T.If((count <= ROWS).expr):
                with T.Then():
                    tile(FewRows, 1, -(-ROWS // shape.lanes) * shape.lanes)
                with T.Else():
                    tile(ManyRows, shape.vectors, shape.rows)
        else:
            tile(ManyRows, shape.vectors, shape.rows)
