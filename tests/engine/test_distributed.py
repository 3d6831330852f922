"""Two processes that torchrun starts do what one does with twice the batch.

`SEPARABLE` says what makes that exact; only the order of sums is left.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.config import dump_config
from detkit.engine import distributed
from detkit.engine.checkpoint import load_checkpoint
from detkit.engine.evaluate import evaluate_source
from detkit.engine.settings import RunConfig
from detkit.evaluation.report import to_json
from tests.engine.run_distributed import main
from tests.engine.settings import SEPARABLE, make_config, read_metrics, torchrun, write_pictures

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]


def write_config(path: Path, config: RunConfig) -> Path:
    path.write_text(dump_config(config))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` and `two`: the runs of one process and of two, on seven pictures; `one.json`, `two.json`: their results."""
    root = tmp_path_factory.mktemp("distributed")
    data = write_pictures(root / "data", 7)  # an odd number: one process evaluates one more
    training = {**data, "train": ["2007_six"]}
    (root / "data/VOC2007/ImageSets/Main/six.txt").write_text("".join(f"{index:03d}\n" for index in range(6)))
    changes = (*SEPARABLE, "train.epochs=2", "eval.batch_size=2")
    for name, batch_size in (("one", 2), ("two", 1)):
        (root / name).mkdir()
        write_config(root / f"{name}.yaml", make_config(training, f"train.batch_size={batch_size}", *changes))
    main(root / "one.yaml", root / "one", root / "one.json")
    torchrun("-m", "tests.engine.run_distributed", root / "two.yaml", root / "two", root / "two.json")
    return root


def read_result(folder: Path, name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return result


def test_same_loss(folder: Path) -> None:
    one, two = (read_result(folder, name)["losses"] for name in ("one", "two"))
    assert set(one) == {"rpn_objectness", "rpn_box", "roi_class", "roi_box"}
    assert all(value > 0 for value in one.values())
    assert two == {name: pytest.approx(value, rel=1e-5) for name, value in one.items()}


def test_same_weights_after_training(folder: Path) -> None:
    one, two = (load_checkpoint(folder / name / "last.pt") for name in ("one", "two"))
    assert one["step"] == two["step"] == 6
    assert one["trained"].keys() == two["trained"].keys()  # no `module.` of DDP
    for name, weights in one["trained"].items():
        torch.testing.assert_close(two["trained"][name], weights, rtol=1e-4, atol=1e-6, msg=name)


def test_only_the_first_process_writes(folder: Path) -> None:
    assert len(read_metrics(folder / "two", "val")) == 2
    names = {path.name.split(".")[0] for path in (folder / "two").iterdir()}
    assert names == {"config", "environment", "metrics", "last", "best", "curves", "events"}


def test_evaluation_over_two_processes_equals_one(folder: Path) -> None:
    """The same checkpoint, measured by the two that trained it and here by one."""
    two = read_result(folder, "two")
    assert two["images"] == 7
    alone, store = evaluate_source(folder / "two", ["voc07", "coco"])
    assert alone.num_detections > 0
    assert two["evaluation"] == json.loads(json.dumps(to_json(alone)))
    assert len(store.detections) == 7
    assert read_metrics(folder / "two", "val")[-1]["mAP"] == alone.results["voc07"].score


def test_one_process_needs_no_group() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.gather("a")) == (0, 1, ["a"])
    with distributed.process_group("cpu") as device, distributed.first_process_first():
        assert device.type == "cpu"
        assert not torch.distributed.is_initialized()
