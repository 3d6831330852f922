import pytest

from detkit.ops import compiled


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of an op runs twice: with the compiled kernels, and as if numba were not installed."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "_numba_works", lambda: False)
    else:
        pytest.importorskip("numba")
    return request.param
