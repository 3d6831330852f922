"""The fair table: what is trained, for how long, and the report of made-up results."""

import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from detkit.config import load_config
from detkit.engine.settings import RunConfig

ROOT = Path(__file__).parents[1]


def load(name: str) -> Any:
    """A module of benchmarks/, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module(name)


lineage, one_run, report = map(load, ("lineage", "lineage_run", "lineage_report"))


def write(folder: Path, detector: str, seed: int, ap: float, *, data: str = "shapes", budget: float = 600) -> None:
    result = {
        "detector": detector,
        "data": data,
        "seed": seed,
        "budget": budget,
        "scores": {"voc07_map": ap + 0.2, "coco_ap": ap, "coco_ap50": ap + 0.3},
        "epochs": 5.0,
        "training_seconds": 601.2,
        "proposal_seconds_a_picture": 0.15,
        "detection_seconds_a_picture": 0.1,
        "parameters": 12_340_000,
        "peak_mib": 1000 + seed,
    }
    (folder / f"{detector}-{data}-{seed}.json").write_text(json.dumps(result))


def test_the_table_has_means_spreads_and_the_best_first(tmp_path: Path) -> None:
    for seed, ap in enumerate((0.30, 0.40, 0.50)):  # mean 0.4, deviations 0.1, 0, 0.1: a standard deviation of 0.1
        write(tmp_path, "weak", seed, ap)
    write(tmp_path, "strong", 0, 0.6)
    write(tmp_path, "weak", 0, 0.2, data="bccd")
    parts = report.tables(report.read_results(tmp_path)).split("\n\n")
    assert [part for part in parts if part.endswith(":")] == ["bccd, 600 s of one core:", "shapes, 600 s of one core:"]
    rows = parts[3].splitlines()[2:]
    assert rows == [
        "| strong | 1 | 0.800 | 0.600 | 0.900 | 5.0 | 601 | 250 | 12.3 | 1,000 |",
        "| weak | 3 | 0.600 ± 0.100 | 0.400 ± 0.100 | 0.700 ± 0.100 | 5.0 | 601 | 250 | 12.3 | 1,002 |",
    ]


def test_the_report_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lineage").mkdir()
    write(tmp_path / "lineage", "yolox", 0, 0.5)
    assert lineage.main(["--report", "--results", str(tmp_path / "lineage")]) == 0
    assert "| yolox | 1 |" in capsys.readouterr().out
    assert (tmp_path / "lineage.png").read_bytes().startswith(b"\x89PNG")


def test_what_has_a_result_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(lineage, "run", lambda job, seconds, results: not ran.append(str(job)))
    write(tmp_path, "yolox", 0, 0.5)
    words = ["--only", "yolox", "ssd", "--data", "shapes", "--seeds", "0", "1", "--seconds", "600"]
    assert lineage.main([*words, "--results", str(tmp_path)]) == 0
    assert ran == ["ssd, shapes, seed 0", "yolox, shapes, seed 1", "ssd, shapes, seed 1"]


def test_results_of_another_budget_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, "yolox", 0, 0.5, budget=60)
    with pytest.raises(SystemExit, match=r"results of \{60\} seconds"):
        lineage.run_all([], 600.0, tmp_path, 1)


def test_masks_are_trained_where_there_are_masks(tmp_path: Path) -> None:
    jobs = lineage.open_jobs(["mask_rcnn", "fcos"], ["shapes", "bccd"], [0], tmp_path)
    assert [str(job) for job in jobs] == ["mask_rcnn, shapes, seed 0", "fcos, shapes, seed 0", "fcos, bccd, seed 0"]


def test_a_training_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lineage.sys, "executable", "false")  # ends with status 1
    jobs = [lineage.Job("fcos", "shapes", 0), lineage.Job("ssd", "shapes", 0)]
    assert lineage.run_all(jobs, 600.0, tmp_path, 1) == 1
    assert capsys.readouterr().out.count("failed") == 2


@pytest.mark.parametrize("name", ["faster_rcnn", "yolox", "rcnn"])
def test_data_input_and_time_are_the_same_for_all(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    config, own = one_run.fair_config(path, "bccd", 2, 90.0), load_config(path, RunConfig)
    resize = config.model.input.resize
    if name == "rcnn":  # it crops its regions from the picture itself
        assert resize == own.model.input.resize
    else:
        assert resize.size == 224
        assert getattr(resize, "max_size", 224) == 224
    assert config.data.classes == ("RBC", "WBC", "Platelets")
    assert (config.train.seed, config.train.max_minutes, config.train.schedule.name) == (2, 1.5, "cosine")
    assert config.train.optimizer == own.train.optimizer
    assert config.loader.workers == 0


def test_a_run_ends_by_the_time_of_the_processor() -> None:
    settings = load_config(ROOT / "configs/yolox.yaml", RunConfig, ["train.max_minutes=2"]).train
    stopping = one_run.ProcessorTime(settings, time.process_time() - 60)
    stopping.started -= 3600  # the clock of the wall tells nothing
    stopping.tick()
    assert stopping.elapsed == pytest.approx(0.5, abs=0.05)
    assert not stopping.time_is_over
