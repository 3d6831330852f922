"""The ledger: each comparison with a reference and the largest difference in it; printed after the tests."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detkit.ops import compiled

ROWS: list[tuple[str, str, str, float, float]] = []
Ledger = Callable[[str, str, str, list[tuple[Tensor, Tensor]]], None]


@pytest.fixture
def compare() -> Ledger:
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
        ROWS.append((detector, reference, what, difference, limit))
        assert difference <= limit, f"{what}: differs by {difference:.2e}"

    return compare


@pytest.fixture(autouse=True)
def exact_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ops of torch and torchvision. Random networks have nearly tied detections, and enlarge the rounding of a
    sum in another order; that the compiled kernels change nothing else is shown in `tests/ops`."""
    monkeypatch.setattr(compiled, "_numba_works", lambda: False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section(f"parity ledger (float32, torch {torch.__version__})")
        for detector, reference, what, difference, limit in sorted(ROWS):
            terminalreporter.line(f"{detector:28} {reference:52} {what:34} {difference:8.1e} (<= {limit:.0e})")
