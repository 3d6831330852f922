import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detkit.accelerate import threads
from detkit.accelerate.threads import _affinity, _cpu_times, _neighbours, available_cpus

UNLIMITED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/job\n", {"job/cpu.max": "150000 100000\n"}, 1),
        ("0::/job/step\n", {"job/cpu.max": "100000 100000\n", "job/step/cpu.max": "max 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/outside\n", {"cpu.max": "100000 100000\n"}, 1),  # within a container its group is the root
        ("0::/job\n", {"job/cpu.max": "max 100000\n"}, None),
        ("0::/job\n", {}, None),
        (
            "3:cpu,cpuacct:/job\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "100000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("2:cpuacct:/\n1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "120000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("1:cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_quota_of_a_container(membership: str, files: dict[str, str], quota: int | None, tmp_path: Path) -> None:
    (tmp_path / "membership").write_text(membership)
    root = cgroup(tmp_path / "cgroup", files)
    assert available_cpus(root, tmp_path / "membership") == min(UNLIMITED, quota or UNLIMITED)


def test_without_control_groups(tmp_path: Path) -> None:
    assert available_cpus(tmp_path, tmp_path / "none") == UNLIMITED


def environment_of(code: str, **settings: str) -> dict[str, str]:
    """OMP_NUM_THREADS and the spin count after `prepare_process`, and the threads of torch."""
    program = (
        f"{code}\nfrom detkit.engine.speed import prepare_process; prepare_process()\n"
        "import os, torch\n"
        "print(*map(os.environ.get, ('OMP_NUM_THREADS', 'GOMP_SPINCOUNT')), torch.get_num_threads())"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment | settings, capture_output=True, text=True, check=True
    )
    return dict(zip(("threads", "spin", "torch"), ran.stdout.split(), strict=True))


def test_torch_starts_no_more_threads_than_the_quota_allows() -> None:
    quota = "import detkit.accelerate.threads as threads; threads._quotas = lambda *_: [1.9]"
    quota_and_neighbour = f"{quota}; threads._neighbours = lambda: 0.5"
    assert environment_of(quota_and_neighbour) == {"threads": "1", "spin": "1000", "torch": "1"}
    assert environment_of("")["threads"] == "None", "without a quota torch counts by itself"
    assert environment_of(quota, OMP_NUM_THREADS="2")["torch"] == "2", "the user's own number"


@pytest.mark.parametrize(("used", "spin"), [(0.0, None), (0.1, None), (0.5, "1000")])
def test_idle_threads_spin_less_beside_a_neighbour(
    used: float, spin: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_neighbours", lambda: used)
    assert threads.settings().get("GOMP_SPINCOUNT") == spin
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    assert "GOMP_SPINCOUNT" not in threads.settings(), "the user's own number"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in threads.settings(), "the user's own policy"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")
def test_a_busy_process_is_a_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SAMPLE", 0.5)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            time.sleep(0.3)
            assert _neighbours() > threads.BUSY or _affinity() > 4  # one process is then a small part
        finally:
            busy.kill()


def test_times_are_those_of_the_own_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 10}, raising=False)
    (tmp_path / "stat").write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 5 5 5 5 5 5 5 5 5 5\n"
        "cpu1 1 2 3 40 5 6 7 8 9 10\ncpu10 1 0 0 60 0 0 0 0 0 0\nintr 1\n"
    )
    assert _cpu_times(tmp_path / "stat") == (72 + 61, 45 + 60)
    assert _cpu_times(tmp_path / "none") == (0, 0)
