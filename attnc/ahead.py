"""The tuned kernels of a bundle: one for each config that was found best in some bucket of the sizes asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from attnc.autotune.bucket import Bucket, bucket_of
from attnc.autotune.data import complete_sizes
from attnc.autotune.lookup import cached
from attnc.autotune.places import hardware_called
from attnc.autotune.problem import Problem
from attnc.autotune.record import name_of
from attnc.backends.protocol import Config, Kernel, Target
from attnc.bundle import Variant
from attnc.errors import ArgumentError
from attnc.jit import Checked, JustInTime
from attnc.targets import backend_for


def tuned_kernels(
    checked: Checked,
    backend: str | None,
    target: Target,
    variants: Iterable[Variant],
    shapes: Sequence[Mapping[str, int]],
    hardware: str | None,
    progress: Callable[[str], None],
) -> dict[Variant, Kernel]:
    """Kernels besides those for all sizes; none for a shape of which nothing is known, or whose default is best.

    Args:
        checked: the program.
        backend: its name, or ``None`` for the usual one.
        target: what to compile for.
        variants: the kernels for all sizes.
        shapes: sizes by name; a shape with D or E is for kernels of that width, one without for all.
        hardware: whose results to take, by the name that ``attnc store ls`` shows; that of this machine if ``None``.
        progress: called with the name of each kernel before it is built.

    Raises:
        ArgumentError: a shape is none, or of a width that no kernel has; nothing is known of the hardware.
    """
    there = hardware_called(hardware) if hardware else None
    name = backend_for(target, backend).name
    kernels: dict[Variant, Kernel] = {}
    used: set[int] = set()
    for variant in variants:
        configs: dict[str, Config] = {}
        buckets: dict[str, dict[Bucket, None]] = {}
        for number, given in enumerate(shapes):
            sizes, widths = complete_sizes(given, checked.program)
            if not {"D", "E"}.isdisjoint(given) and widths != variant.widths:
                continue
            used.add(number)
            problem = Problem(checked, name, target, "forward", (), variant.widths, variant.workload, sizes)
            if config := cached(problem.request(), there):
                configs[name_of(config)] = config
                buckets.setdefault(name_of(config), {})[bucket_of(sizes)] = None
        for called, config in configs.items():
            made = Variant(variant.widths, variant.workload, tuple(buckets[called]))
            progress(made.name)
            just = JustInTime(checked, backend, lambda request, config=config: config)  # type: ignore[misc]
            kernels[made] = just.kernel(variant.widths, variant.workload, target, {})
    if idle := [dict(given) for number, given in enumerate(shapes) if number not in used]:
        raise ArgumentError(
            "shapes", f"no kernel of the bundle has the head widths of {idle[0]}: give them to head_dims"
        )
    return kernels
