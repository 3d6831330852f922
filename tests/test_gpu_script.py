"""`benchmarks/gpu.py`: that it runs, on the CPU, and what it makes of its figures."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


def load(name: str) -> Any:
    """A module of benchmarks/, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module(name)


gpu, device, detectors = map(load, ("gpu", "device", "gpu_detectors"))


@pytest.mark.long
def test_it_runs_on_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    words = ["benchmarks/gpu.py", "--device", "cpu", "--quick", "--models", "YOLOX-s", "--file", str(file)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    assert report["tests"]["failed"] == []
    assert report["tests"]["passed"] + report["tests"]["skipped"] > 20
    rows = report["rows"]
    assert all(row["fails"] is None for row in rows), done.stdout
    ways = [(row["work"], row["way"]) for row in rows]
    assert sorted(ways) == sorted((work, way.name) for way in detectors.WAYS for work in ("inference", "training step"))
    for row in rows:
        assert row["seconds"] > 0
        assert row["flops"] > 1e9
        assert (row["grown"], row["syncs"], row["share"]) == (None, None, None)


def test_a_peer_runs_in_turn_with_detkit_but_where_that_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    ran: list[str] = []
    (name, size), cpu = ("YOLOX-s", (160, 160)), torch.device("cpu")
    pair = gpu.CASES[name].build(cpu, size)
    peer = detectors.Pair(pair.detector, "peer", torch.nn.Linear(1, 1), None, lambda batch: ran.append("peer"))
    batch = detectors.random_batch([size], 3, 80, stride=32)
    row = detectors.Row(name, "inference", "", "detkit", 1)
    rows = [list(detectors.rows_of(peer, row, way, batch, device.Card(cpu), 1, True)) for way in detectors.WAYS[3:]]
    assert [[row.side for row in of_way] for of_way in rows] == [["detkit", "peer"], ["detkit"]]
    assert [row.fails for of_way in rows for row in of_way] == [None] * 3
    assert len(ran) == 3  # whether it runs; once that is not counted; once
    broken = detectors.Pair(pair.detector, "peer", torch.nn.Linear(1, 1), None, lambda batch: 1 / 0)
    failed = list(detectors.rows_of(broken, row, detectors.WAYS[0], batch, device.Card(cpu), 1, True))
    assert [(row.side, row.fails) for row in failed] == [
        ("peer", "ZeroDivisionError: division by zero"),
        ("detkit", None),
    ]


def test_a_process_that_fails_is_a_row_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    options = gpu.argparse.Namespace(device="nowhere", repeats=1, quick=True)
    (row,) = gpu.rows_of("SSD300", options, 60)
    assert row["detector"] == "SSD300"
    assert "nowhere" in row["fails"]


def test_the_share_is_that_of_the_cards_peak_in_its_precision() -> None:
    card = device.Card(torch.device("cpu"))
    assert card.share(10**12, 1.0, "bf16") is None
    card.is_cuda, card.name = True, "NVIDIA H200"
    assert card.share(989 * 10**12, 2.0, "bf16") == pytest.approx(0.5)
    assert card.share(67 * 10**11, 1.0, "float32") == pytest.approx(0.1)
    card.name = "a card that is not listed"
    assert card.share(10**12, 1.0, "bf16") is None


def test_the_operations_of_a_product_are_counted() -> None:
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert detectors.operations(lambda: left @ right) == 2 * 3 * 5 * 7


def test_the_table_has_both_sides_in_a_row() -> None:
    row = {"detector": "X", "work": "inference", "way": "bf16", "pictures": 1, "fails": None}
    own = row | {"side": "detkit", "seconds": 0.01, "grown": 1200, "syncs": 3, "share": 0.25}
    peer = row | {"side": "torchvision", "seconds": 0.02, "grown": 2400, "syncs": 9, "share": 0.125}
    failed = row | {"side": "detkit", "way": "compiled", "fails": "RuntimeError: a | b"}
    assert gpu.table([own, peer, failed, {"detector": "Y", "fails": "stopped after 9 s"}]) == [
        "| X, inference, 1 | bf16 | 10.0 | 20.0 | 2.00 | 25.0% | 1,200; 2,400 | 3; 9 |",
        "| X, inference, 1 | compiled | fails: RuntimeError: a / b |  |  |  |  |  |",
        "| Y | stopped after 9 s | | | | | | |",
    ]
