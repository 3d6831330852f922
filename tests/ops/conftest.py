from collections.abc import Iterator

import pytest
import torch

from detkit.ops import dispatch


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Kernels divide their work among threads, also where the tests run with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of an op runs twice: with the compiled kernels, and as if numba were not installed."""
    if request.param == "torch":
        monkeypatch.setattr(dispatch, "kernels", lambda: None)
    else:
        pytest.importorskip("numba")
        assert dispatch.kernels() is not None
    return request.param
