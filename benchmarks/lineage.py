"""Every detector with a built-in configuration on the same data, for the same time of one core, by the same evaluator.

python benchmarks/lineage.py [--only NAME ...] [--data NAME ...] [--seeds N ...] [--seconds N] [--jobs N]
python benchmarks/lineage.py --report [--picture FILE]

Each training is a process of its own with one thread, from random weights, with an input whose longer side is 224 px.
It writes one JSON file; one that is there is not run again, so the whole can be stopped and started as one likes.
`--report` prints the tables of what is there and draws accuracy against seconds a picture. docs/results.md says what is
the same for all and what is not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from lineage_report import draw, read_results, tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/lineage"
SHARED = Path(os.environ.get("DETKIT_SHARED_DATA", ROOT.parent / "shared" / "data"))
DATA = ("shapes", "bccd", "fod-a-mini")
SHAPES_ONLY = ("mask_rcnn", "keypoint_rcnn")  # the other sets have boxes alone
SECONDS = 300.0  # of one core


@dataclass(frozen=True)
class Job:
    detector: str
    data: str
    seed: int

    def __str__(self) -> str:
        return f"{self.detector}, {self.data}, seed {self.seed}"

    def file(self, results: Path) -> Path:
        return results / f"{self.detector}-{self.data}-{self.seed}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=detectors(), default=detectors(), metavar="NAME")
    parser.add_argument("--data", nargs="+", choices=DATA, default=[name for name in DATA if is_there(name)])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one core, for each training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--report", action="store_true", help="of what is there; nothing is trained")
    parser.add_argument("--picture", type=Path, help="where --report draws (default: lineage.png beside --results)")
    options = parser.parse_args(arguments)
    if options.report:
        results = read_results(options.results)
        if not results:
            parser.error(f"{options.results}: no results here")
        print(tables(results))
        draw(results, options.picture or options.results.parent / "lineage.png")
        return 0
    for name in options.data:
        if not is_there(name):
            parser.error(f"--data {name}: not found at {SHARED}; set DETKIT_SHARED_DATA to the folder that holds it")
    jobs = open_jobs(options.only, options.data, options.seeds, options.results)
    return run_all(jobs, options.seconds, options.results, options.jobs)


def detectors() -> list[str]:
    """The names of the configurations that train on the built-in shapes: all but those of clips."""
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    return [path.stem for path in paths if yaml.safe_load(path.read_text())["data"]["name"] == "shapes"]


def is_there(data: str) -> bool:
    return data == "shapes" or (SHARED / data).is_dir()


def open_jobs(names: Iterable[str], data: Sequence[str], seeds: Iterable[int], results: Path) -> list[Job]:
    """What has no result yet; all detectors with the first seed come first."""
    jobs = [Job(name, where, seed) for seed in seeds for where in data for name in names]
    jobs = [job for job in jobs if job.data == "shapes" or job.detector not in SHAPES_ONLY]
    return [job for job in jobs if not job.file(results).exists()]


def run_all(jobs: Sequence[Job], seconds: float, results: Path, at_once: int) -> int:
    """Status 1 if one failed; the others run all the same. Raises SystemExit if earlier results had another budget."""
    budgets = {result["budget"] for result in read_results(results)}
    if budgets - {seconds}:
        raise SystemExit(f"{results}: results of {budgets} seconds; give --seconds the same, or another --results")
    results.mkdir(parents=True, exist_ok=True)
    print(f"{len(jobs)} trainings of {seconds:g} seconds to do", flush=True)
    with ThreadPoolExecutor(at_once) as pool:
        done = list(pool.map(lambda job: run(job, seconds, results), jobs))
    return int(not all(done))


def run(job: Job, seconds: float, results: Path) -> bool:
    """Whether it ended well; prints how it went."""
    config, script = ROOT / "configs" / f"{job.detector}.yaml", ROOT / "benchmarks/lineage_run.py"
    words = [sys.executable, str(script), str(config), job.data, str(job.seed), str(seconds), str(job.file(results))]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        print(f"{job}: failed: {last}", flush=True)
        return False
    scores = json.loads(job.file(results).read_text())["scores"]
    print(f"{job}: voc07 mAP {scores['voc07_map']:.3f}, COCO AP {scores['coco_ap']:.3f}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
