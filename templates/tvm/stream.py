"""The ``stream`` and ``twopass`` families: tiles of rows, each walking over its visible keys tile by tile.

A task is one tile of query rows of one head; tasks are spread over the cores. What a spec decides comes in through
:class:`~attnc.templates.tvm.walk.Slots`; everything else, the order of loops, what lies in cache and when, is here.
"""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.few import FewRows
from attnc.templates.tvm.head import FEW, SHARE, TASKS
from attnc.templates.tvm.many import ManyRows
from attnc.templates.tvm.products import Shape, index
from attnc.templates.tvm.split import Partial, SplitRows
from attnc.templates.tvm.tasks import Tasks
from attnc.templates.tvm.values import Value, constant, maximum, minimum, select
from attnc.templates.tvm.walk import Sizes, Slots


def stream(
    shape: Shape, slots: Slots, sizes: Sizes, tasks: Tasks, *, few: bool = True, partial: Partial | None = None
) -> None:
    """The whole kernel: a parallel loop over tiles of rows, later rows first, since they often see more keys.

    ``few`` says whether there is code of its own for tiles of few rows, as in decoding; with ``partial``, memory for
    states, their keys may be dealt to several tasks.
    """
    heads = (sizes.B * sizes.H).keep()
    tiles = ((sizes.M + (shape.rows - 1)) // shape.rows).keep()
    parts = _parts(heads, sizes) if partial else constant(1, "int32")
    padded = -(-FEW // shape.lanes) * shape.lanes
    with tasks.dealt(heads * tiles * parts) as (task, scratch):
        part, task = (task % parts).keep(), (task // parts).keep()
        head = (task // tiles).keep()
        b, h = (head // sizes.H).keep(), (head % sizes.H).keep()
        row = ((tiles - 1 - task % tiles) * shape.rows).keep()
        count = minimum(sizes.M - row, shape.rows).keep()

        def many() -> None:
            with scratch.shared():
                task_slots = slots.task(b, h, scratch)
                ManyRows(shape, slots, task_slots, sizes, scratch, row, count, shape.vectors, shape.rows).run()

        if not few:
            many()
            return
        with T.If((count <= FEW).expr):
            with T.Then(), scratch.shared():
                task_slots = slots.task(b, h, scratch)
                if partial is None:
                    FewRows(shape, slots, task_slots, sizes, scratch, row, count, 1, padded).run()
                else:
                    tile = SplitRows(shape, slots, task_slots, sizes, scratch, row, count, 1, padded, (part, parts))
                    tile.begin()
                    tile.walk()
                    with T.If((parts <= 1).expr):
                        with T.Then():
                            tile.finish()
                        with T.Else():
                            tile.keep(*partial(part, b, h))
            with T.Else():
                many()
    if partial is None:
        return
    with tasks.dealt(select(parts > 1, heads, 0)) as (head, scratch):
        b, h = (head // sizes.H).keep(), (head % sizes.H).keep()
        task_slots = slots.task(b, h, scratch)
        row = constant(0, "int32")
        tile = SplitRows(shape, slots, task_slots, sizes, scratch, row, minimum(sizes.M, FEW).keep(), 1, padded)
        tile.begin()
        with T.serial(parts.expr) as at:
            tile.merge(*partial(index(at), b, h))
        tile.finish()


def _parts(heads: Value, sizes: Sizes) -> Value:
    """As :func:`attnc.templates.tvm.head.key_parts_of`."""
    parts = maximum(minimum(constant(TASKS, "int32") // heads, sizes.N // SHARE), 1)
    return select(sizes.M <= FEW, parts, 1).keep()
