"""A process whose Triton is the interpreter: reads requests from standard input, one JSON line each, and answers.

Triton decides when it is imported whether its functions are interpreted, so tests that compile and tests that
interpret cannot share a process.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import replace

import block_routes
import listed_cases
import route_borders
import routed_cases
import torch
import triton_backward_cases
import triton_cases
from strategies import tensors
from triton_cases import Case, Data, make

from attnc.analyse.lower import lower_program_to_plan
from attnc.backends.protocol import Target, Workload
from attnc.backends.triton import TritonBackend, call
from attnc.backends.triton.configs import INTERPRETER, Config
from attnc.backends.triton.few import FewRows
from attnc.backends.triton.hopper.backward_configs import WalkConfig
from attnc.backends.triton.kernel import InterpretedBackward
from attnc.backends.triton.lower_backward import lower_backward_to_recipe
from attnc.backends.triton.recipe import Launch
from attnc.ir.reader import read_program
from attnc.ir.specialize import specialize
from attnc.reference import evaluate

TARGET = Target("cuda", "sm_90")


def case_of(request: dict[str, object]) -> Case:
    found = triton_backward_cases.find(str(request["case"]))
    return replace(found, sizes={**found.sizes, **dict(request.get("sizes", {}))})  # type: ignore[call-overload]


def compare(request: dict[str, object]) -> None:
    """Kernel against reference, on fresh data."""
    make(case_of(request), str(request["dtype"]), int(request["seed"])).compare(TARGET)  # type: ignore[call-overload]


def compare_few_rows(request: dict[str, object]) -> str:
    """The same with a few rows and many keys; answers how many parts the keys were walked in."""
    data = make(case_of(request), str(request["dtype"]), int(request["seed"]))  # type: ignore[call-overload]
    made, (batch, heads, rows, _) = data.kernel(TARGET), data.q.shape
    data.compare(TARGET)
    if not isinstance(made, FewRows):
        return "no parts"
    rule = made.few.recipe.split
    assert rule is not None
    sizes = {"B": batch, "H": heads, "G": data.k.shape[1], "M": rows, "N": data.k.shape[2]}
    return f"{rule.parts(sizes, 12)} parts{', packed' if rule.packed else ''}"


def compare_strides(request: dict[str, object]) -> None:
    """The same with tensors that are neither contiguous nor aligned, and into such an output."""
    data = make(case_of(request), "bf16", int(request["seed"]))  # type: ignore[call-overload]
    q, k, v = data.q, data.k, data.v
    data.q = q.transpose(1, 2).contiguous().transpose(1, 2)
    data.k = torch.stack((k, k), -1).flatten(-2)[..., ::2]
    data.v = torch.cat((v.new_zeros(*v.shape[:-1], 3), v), -1)[..., 3:]
    data.compare(TARGET)
    out = q.new_full((*q.shape[:2], 2 * q.shape[2], 2 * v.shape[-1]), float("nan"))
    data.run(TARGET, out[..., ::2, ::2])
    expected, _ = data.expected()
    torch.testing.assert_close(out[..., ::2, ::2].double(), expected, rtol=3e-2, atol=3e-2)
    assert out[..., 1::2, :].isnan().all(), "memory between the rows of the output was written"
    data.k, data.v = k[:, :, :1].expand_as(k), v.flip(2)
    data.compare(TARGET)


def compare_kept_lists(request: dict[str, object]) -> None:
    """Tile lists are kept while their inputs stay as they are, and made again when one changes in place."""
    data: Data = make(triton_cases.find("documents"), "f32", int(request["seed"]))  # type: ignore[call-overload]
    made = data.kernel(TARGET)
    lists = made.many.lists.kept  # type: ignore[attr-defined]
    lists.clear()
    data.compare(TARGET)
    data.compare(TARGET)
    assert len(lists) == 1, "the second call should find the lists of the first"
    data.inputs[0] = data.inputs[0].detach()
    data.compare(TARGET)
    assert len(lists) == 1, "the call of an operator is given other tensors of the same memory"
    data.inputs[0].copy_(data.inputs[0].flip(1))
    data.compare(TARGET)
    assert len(lists) == 2, "a changed input needs new lists"
    data.inputs[0] = data.inputs[0].clone()
    data.compare(TARGET)
    assert len(lists) == 3, "another tensor needs lists of its own"


def compare_program(request: dict[str, object]) -> None:
    """A random program, as printed IR."""
    sizes: dict[str, int] = dict(request["sizes"])  # type: ignore[call-overload]
    program = specialize(read_program(str(request["program"])), sizes["D"], sizes["E"])
    plan = lower_program_to_plan(program)
    q, k, v, inputs = tensors(program, sizes, int(request["seed"]), torch.float32)  # type: ignore[call-overload]
    given = [inputs[declared.name] for declared in program.inputs]
    workload = Workload("f32", tuple(triton_cases.NAMES[tensor.dtype] for tensor in given), False)
    backend = TritonBackend()
    if backend.problems(plan, workload, TARGET):
        return
    out = q.new_full((*q.shape[:3], sizes["E"]), float("nan"))
    params = {one.name: one.default for one in program.parameters}
    backend.build(plan, workload, TARGET).run(q, k, v, given, list(params.values()), (), out, None)  # type: ignore[arg-type]
    exact = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    expected = evaluate(program, q.double(), k.double(), v.double(), exact, params)  # type: ignore[arg-type]
    assert isinstance(expected, torch.Tensor)
    scale = max(1.0, float(expected.abs().nan_to_num().max())) if expected.numel() else 1.0
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-3 * scale)


def compare_gradients(request: dict[str, object]) -> list[list[int]]:
    """Gradients against autograd through the reference, as on a device with so many ``processors``.

    Answers the shapes of what walks that sum over the heads of a group wrote.
    """
    data = make(case_of(request), str(request["dtype"]), int(request["seed"]))  # type: ignore[call-overload]
    shapes: list[list[int]] = []
    part, processors = call._part_groups, call.processors_of

    def recorded(launch: Launch, one: call.Call, device: torch.device) -> dict[str, torch.Tensor]:
        totals = part(launch, one, device)
        shapes.extend(list(one.tensors[name].shape) for name in launch.grouped)
        return totals

    call._part_groups = recorded
    if "processors" in request:
        call.processors_of = lambda _: int(request["processors"])  # type: ignore[call-overload]
    try:
        triton_backward_cases.compare(data, TARGET)
    finally:
        call._part_groups, call.processors_of = part, processors
    return shapes


def compare_on_hopper(request: dict[str, object]) -> list[str]:
    """Gradients by emulated kernels for Hopper, with the configs of a request; answers the families that ran."""
    from hopper_emulator import Emulator

    case = case_of(request).at(**dict(request["sizes"]))  # type: ignore[call-overload]
    data = make(case, str(request.get("dtype", "bf16")), int(request["seed"]))  # type: ignore[call-overload]
    configs: dict[str, Config] = {"pairs": INTERPRETER}
    for over in ("keys", "rows"):
        configs[over] = WalkConfig(**request[over])  # type: ignore[arg-type]
    lowered = lower_backward_to_recipe(
        triton_backward_cases.backward_of(data), triton_backward_cases.workload_of(data), configs, "f32"
    )
    made = InterpretedBackward(lowered.recipe, {}, Emulator(case.name, lowered))
    kernel, processors = triton_backward_cases.backward_kernel, call.processors_of
    triton_backward_cases.backward_kernel = lambda *_: made
    call.processors_of = lambda _: int(request.get("processors", 0))  # type: ignore[call-overload]
    try:
        triton_backward_cases.compare(data, TARGET)
    finally:
        triton_backward_cases.backward_kernel, call.processors_of = kernel, processors
    return [launch.family for launch in lowered.recipe.launches]


def compare_gradient_strides(request: dict[str, object]) -> None:
    """The same with tensors that are neither contiguous nor aligned."""
    data = make(case_of(request), "f32", int(request["seed"]))  # type: ignore[call-overload]
    data.q = data.q.transpose(1, 2).contiguous().transpose(1, 2)
    data.k = torch.stack((data.k, data.k), -1).flatten(-2)[..., ::2]
    data.v = data.v[:, :, :1].expand_as(data.v)
    triton_backward_cases.compare(data, TARGET)


def compare_gradient_bits(request: dict[str, object]) -> None:
    """Two runs give the same bits."""
    data = make(case_of(request), "f32", int(request["seed"]))  # type: ignore[call-overload]
    d_out = triton_backward_cases.cotangent(data)
    runs = [triton_backward_cases.results(data, d_out, TARGET) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def compare_listed(request: dict[str, object]) -> None:
    """Keys given by number: forward or gradients."""
    sizes: dict[str, int] = dict(request.get("sizes", {}))  # type: ignore[call-overload]
    given = [str(request[name]) for name in ("case", "heads", "dtype")]
    data = listed_cases.listed(*given, int(request["seed"]), **sizes)  # type: ignore[call-overload, arg-type]
    (listed_cases.compare_gradients if request.get("gradients") else listed_cases.compare)(data, TARGET)


def compare_routed(request: dict[str, object]) -> None:
    """A routed operator whose kernels gather single keys."""
    routed_cases.compare_gathered(str(request["case"]), int(request["seed"]), bool(request.get("gradients")))  # type: ignore[call-overload]


def compare_choices(request: dict[str, object]) -> None:
    """Choices of single keys by kernels and in torch."""
    routed_cases.compare_choices(str(request["case"]), int(request["seed"]), *request.get("sizes", ()))  # type: ignore[call-overload, misc]


def compare_borders(request: dict[str, object]) -> None:
    """Routes given what they are not made for."""
    route_borders.compare(str(request["case"]), int(request["seed"]), "triton", *request.get("sizes", ()))  # type: ignore[call-overload, misc]


def compare_choice(request: dict[str, object]) -> None:
    """What kernels choose against what torch does."""
    block_routes.compare_choice(str(request["route"]), str(request["dtype"]), int(request["seed"]), TARGET)  # type: ignore[call-overload]


def compare_block_route(request: dict[str, object]) -> None:
    """An operator whose queries choose blocks."""
    block_routes.compare_operator(str(request["route"]), str(request["dtype"]), int(request["seed"]))  # type: ignore[call-overload]


def compare_library(request: dict[str, object]) -> dict[str, float]:
    """Largest errors of the functions that slots call: relative, absolute below 1."""
    from triton_library import errors

    return errors()


ACTIONS = {
    "compare": compare,
    "few rows": compare_few_rows,
    "strides": compare_strides,
    "lists": compare_kept_lists,
    "program": compare_program,
    "library": compare_library,
    "listed": compare_listed,
    "routed": compare_routed,
    "choices": compare_choices,
    "borders": compare_borders,
    "choice": compare_choice,
    "block route": compare_block_route,
    "gradients": compare_gradients,
    "gradient strides": compare_gradient_strides,
    "gradient bits": compare_gradient_bits,
    "on hopper": compare_on_hopper,
}


def main() -> None:
    """Answer each line with ``{"ok": ...}`` or ``{"error": text}``."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": ACTIONS[request["action"]](request)}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
