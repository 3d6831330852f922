"""The ledger: each comparison with a reference and the largest difference in it; printed after the tests.

Every comparison is made twice: with the detector as it is built, and as the tools run it, with faster modules, compiled
kernels and, whatever the processor, the convolutions and products for AMD's with AVX-512.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.accelerate import accelerate, processor
from detkit.ops import dispatch

PLAIN, TOOLS = "plain", "as the tools run it"
# Gradients of deep networks with ReLU and max pooling, as the tools run them. Rounding in another order moves about one
# in a million of the activations across a kink, and gradients by about the root of that part; those of plain float32
# networks differ as much from those in float64 (SSD300: 6.5e-4, and as the tools run it 1.0e-3).
KINKS = 5e-3
ROWS: dict[tuple[str, str, str], dict[str, float]] = {}
LIMITS: dict[tuple[str, str, str], float] = {}
Ledger = Callable[[str, str, str, list[tuple[Tensor, Tensor]]], None]
AsRun = Callable[[Any], Any]


@pytest.fixture(scope="module", autouse=True, params=[PLAIN, TOOLS])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == PLAIN:
            patch.setattr(dispatch, "kernels", lambda: None)
        else:
            patch.setattr(processor, "has_avx2_alone", lambda: True)  # every fast path that there is
            patch.setattr(processor, "is_amd_with_avx512", lambda: True)
        yield request.param


@pytest.fixture(scope="module")
def as_run(way: str) -> AsRun:
    """Makes a detector, whose weights are loaded, what is compared."""
    return accelerate if way == TOOLS else lambda detector: detector


@pytest.fixture
def compare(way: str) -> Ledger:
    """compare(detector, reference, what, pairs): enters the largest difference and fails above 1e-4 (float32).

    pairs  of detkit's tensor and that of the reference
    """

    def compare(
        detector: str, reference: str, what: str, pairs: list[tuple[Tensor, Tensor]], limit: float = 1e-4
    ) -> None:
        assert pairs, f"{what}: nothing to compare"
        for actual, expected in pairs:
            assert actual.shape == expected.shape, f"{what}: {list(actual.shape)} against {list(expected.shape)}"
        difference = max(
            (actual.detach() - expected.detach()).abs().max().item() if actual.numel() else 0.0
            for actual, expected in pairs
        )
        row = (detector, reference, what)
        ROWS.setdefault(row, {})[way] = difference
        LIMITS[row] = limit
        assert difference <= limit, f"{what}: differs by {difference:.2e}"

    return compare


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section(f"parity ledger (float32, torch {torch.__version__}): plain, as the tools run it")
        for row, differences in sorted(ROWS.items()):
            detector, reference, what = row
            columns = " ".join(f"{differences[way]:8.1e}" if way in differences else " " * 8 for way in (PLAIN, TOOLS))
            terminalreporter.line(f"{detector:28} {reference:52} {what:34} {columns} (<= {LIMITS[row]:.0e})")
