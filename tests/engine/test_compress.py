"""Truncated SVD of a region head: the best product of a rank, the same detector at full rank, and what is refused."""

from pathlib import Path

import pytest
import torch

from detkit import cli
from detkit.detectors.build import build_detector
from detkit.detectors.fast_rcnn import FastRCNNConfig, FastRoIConfig
from detkit.engine.compress import compress, truncated_svd
from detkit.engine.evaluate import evaluate_source
from detkit.engine.sources import load_detector
from detkit.structures import Categories
from tests.cli_support import train_tiny

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Faster R-CNN with hidden layers of 16 and 16."""
    return train_tiny(tmp_path_factory.mktemp("compress"))


def test_parameters_of_vgg16_as_published() -> None:
    """fc6 as 1024 + 4096 and fc7 as 256 + 4096, the first of each without a bias."""
    with torch.device("meta"):
        config = FastRCNNConfig(roi=FastRoIConfig(ranks=(1024, 256)))
        detector = build_detector(config, Categories.of_names([str(i) for i in range(20)]))
    assert sum(parameter.numel() for parameter in detector.parameters()) == 47_134_633


def test_the_error_is_the_norm_of_the_singular_values_left_out() -> None:
    """Eckart and Young: no product of that rank is nearer."""
    weight = torch.randn(12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(weight)
    for rank in (1, 5, 12):
        first, second = truncated_svd(weight, rank)
        assert first.shape == (rank, 30)
        assert second.shape == (12, rank)
        torch.testing.assert_close(torch.linalg.norm(weight - second @ first), values[rank:].norm())


def test_at_full_rank_nothing_changes(run: Path, tmp_path: Path) -> None:
    report = compress(run, [16, 16], tmp_path / "thin/full.pt")
    assert report.endswith(f"in {tmp_path / 'thin/full.pt'}")
    (_, before), (_, after) = (evaluate_source(source, ["voc07"]) for source in (run, tmp_path / "thin/full.pt"))
    assert before.detections.keys() == after.detections.keys()
    for image_id, expected in before.detections.items():
        actual = after.detections[image_id]
        assert len(actual) == len(expected) > 0
        torch.testing.assert_close(actual.boxes, expected.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(actual.scores, expected.scores, atol=1e-4, rtol=0)


def test_the_tool(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "thin.pt"
    assert cli.compress([str(run), "--ranks", "4", "2", "--output", str(output)]) == 0
    thin, config = load_detector(output)
    whole, _ = load_detector(run)
    before, after = (sum(p.numel() for p in detector.parameters()) for detector in (whole, thin))
    assert before - after == 16 * 16 * 49 + 16 * 16 - 4 * (16 * 49 + 16) - 2 * 32
    assert f"{before:,} parameters -> {after:,}" in capsys.readouterr().out
    assert config
    assert config.model.roi.ranks == (4, 2)  # type: ignore[union-attr]
    assert cli.evaluate([str(output), "--protocol", "voc07"]) == 0


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (["4"], "--ranks: expected 2, each of at least 1 and at most [16, 16], found [4]"),
        (["4", "17"], "at most [16, 16], found [4, 17]"),
        (["0", "4"], "found [0, 4]"),
    ],
)
def test_ranks_that_do_not_fit(
    ranks: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.compress([str(run), "--ranks", *ranks, "--output", str(tmp_path / "thin.pt")]) == 2
    assert message in capsys.readouterr().err


def test_what_is_cut_already(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compress(run, [4, 2], tmp_path / "thin.pt")
    assert cli.compress([str(tmp_path / "thin.pt"), "--ranks", "2", "2", "--output", str(tmp_path / "again.pt")]) == 2
    assert "its layers are cut already, to ranks [4, 2]" in capsys.readouterr().err


def test_a_detector_without_such_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yolov3 = {
        "name": "yolov3",
        "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0, "strides": [8, 16, 32]},
        "input": {"resize": {"name": "letterbox", "size": 64}},
    }
    run = train_tiny(tmp_path, model=yolov3)
    assert cli.compress([str(run), "--ranks", "2", "2", "--output", str(tmp_path / "thin.pt")]) == 2
    assert "YOLOv3 has no region head with fully connected layers to cut" in capsys.readouterr().err
