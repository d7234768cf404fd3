"""A fault of one kernel ends the run: it makes every later call of the process fail, and hides which one it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _device_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as fault:
            pytest.exit(f"{request.node.nodeid} left the device unusable: {str(fault).splitlines()[0]}", 3)
