"""Each `configs/NAME.yaml` reaches the score that its header states, on the machine at hand."""

import re
from pathlib import Path

import pytest

from detkit.config import load_config
from detkit.engine.evaluate import evaluate_source
from detkit.engine.settings import RunConfig
from detkit.engine.train import train_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STATED = re.compile(r"^# Seen to reach (\w+) (mAP|AP50|video-mAP@0\.5) ([01]\.\d+)", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_reaches_the_score_of_its_header(path: Path, tmp_path: Path) -> None:
    stated = STATED.search(path.read_text())
    assert stated, f"{path.name}: the header has no line '# Seen to reach PROTOCOL mAP 0.00 ...' or AP50"
    config = load_config(path, RunConfig, [f"data.root={tmp_path / 'data'}"])
    evaluation = train_config(config, tmp_path)
    protocol, metric, score = stated[1], stated[2], float(stated[3])
    assert evaluation is not None
    assert evaluation.results[protocol].metrics[metric] >= score - 0.03  # other processors round otherwise
    again, _ = evaluate_source(tmp_path, [protocol])
    assert again.results[protocol].metrics == evaluation.results[protocol].metrics


def test_every_configuration_on_built_in_data_states_its_score() -> None:
    for path in CONFIGS.glob("*.yaml"):
        assert STATED.search(path.read_text()), path.name
