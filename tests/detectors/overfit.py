"""A few pictures learned by heart: data, detector, losses, postprocessing and evaluator agree on what a box is."""

from collections.abc import Sequence
from pathlib import Path

import torch

from detkit.config import load_config
from detkit.data.build import build_dataset
from detkit.detectors.build import build_detector
from detkit.engine.evaluate import detection_store, evaluate
from detkit.engine.loaders import evaluation_loader
from detkit.engine.proposal_search import proposals_for
from detkit.engine.settings import RunConfig
from detkit.engine.speed import accelerate
from detkit.evaluation.build import build_evaluators


def small_backbone(strides: Sequence[int]) -> str:
    """The change of a configuration that makes a step cheap, whatever the detector."""
    return f"model.backbone={{name: csp_darknet, width: 0.125, depth: 0.33, strides: {list(strides)}}}"


def overfit(
    file: Path,
    root: Path,
    changes: Sequence[str],
    *,
    pictures: int,
    steps: int,
    lr: float = 1e-3,
    clip_norm: float = 10,
) -> float:
    """VOC07 mAP on the built-in pictures after `steps` steps on all of them; `root`: a folder to draw them in."""
    data = [f"data.root={root / 'shapes'}", f"data.num_train={pictures}", "data.num_val=1"]
    config = load_config(file, RunConfig, [*data, *changes])
    dataset = build_dataset(config.data, "train")
    torch.manual_seed(0)
    detector = build_detector(config.model, dataset.categories)
    accelerate(detector)
    proposals = proposals_for(detector, dataset, Path(config.data.root), workers=0)
    loader = evaluation_loader(
        dataset, detector, batch_size=pictures, workers=0, proposals=proposals, with_targets=True
    )
    (batch,) = loader
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr, fused=True)
    detector.train()
    for _ in range(steps):
        losses = detector.criterion(detector(batch), batch.targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), clip_norm)
        optimizer.step()
    store = detection_store(dataset)
    evaluators = build_evaluators(["voc07"], store)
    evaluation = evaluate(detector, loader, store, evaluators, device=torch.device("cpu"), progress=False)
    return evaluation.results["voc07"].score
