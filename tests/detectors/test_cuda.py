"""Every detector on a CUDA device gives what it gives on the CPU: detections, losses and gradients."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from detkit.detectors.build import BUILDERS, build_detector
from detkit.detectors.detector import AnyDetector
from detkit.structures import Categories, KeypointCategories
from tests.detectors.batches import CONFIGS, ROOT, cheap_config, enliven, make_batch

# Those without a configuration of their own on built-in data, and other heads of those that have one.
PUBLISHED = ("conditional_detr_r50", "detr_r50", "dn_detr_r50", "rt_detr_v2_r18", "lw_detr_small", "rf_detr_nano")
FILES = [path for path in CONFIGS if path.parent == ROOT / "configs" or path.stem in PUBLISHED]
CATEGORIES = Categories.of_names([f"class {i}" for i in range(6)])
POINTS = KeypointCategories(("head", "left foot", "right foot"), ((1, 2),))
RANDOM = (torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like)


class RandomOfTheCPU(TorchFunctionMode):
    """Random numbers are drawn on the CPU, whatever device they are for: equal seeds give equal numbers."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in RANDOM:
            return func(*args, **kwargs)
        device = kwargs.pop("device", None)
        if func in (torch.rand_like, torch.randn_like):
            device = args[0].device
            args = (args[0].cpu(), *args[1:])
        return func(*args, **kwargs, device="cpu").to(device or "cpu")


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """In full precision, without the rounding of TF32."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def build(path: Path) -> AnyDetector:
    """With random weights, in float64: a box on the verge of a threshold may fall to either side of it."""
    torch.manual_seed(0)
    config = cheap_config(path).model
    points = POINTS if config.name == "keypoint_rcnn" else None
    return build_detector(config, replace(CATEGORIES, keypoints=points)).double()


def losses_and_gradients(detector: AnyDetector, device: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of one training step without dropout, on the CPU."""
    detector.to(device).train().zero_grad(set_to_none=True)
    for module in detector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # of attention
    batch = make_batch(detector, [3, 2]).to(device)
    torch.manual_seed(1)
    with RandomOfTheCPU():
        losses = detector.criterion(detector(batch), batch.targets or ())
        torch.stack([loss.double() for loss in losses.values()]).sum().backward()
    gradients = {name: p.grad.cpu() for name, p in detector.named_parameters() if p.grad is not None}
    return {name: loss.detach().cpu() for name, loss in losses.items()}, gradients


def test_every_detector_has_a_configuration_here() -> None:
    names = {found[1] for path in FILES if (found := re.search(r"^model:\n  name: (\w+)", path.read_text(), re.M))}
    assert names == {config.model_fields["name"].default for config in BUILDERS}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_equal_seeds_give_equal_random_numbers_on_both_devices(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def draw(device: str) -> list[Tensor]:
        like = torch.zeros(3, device=device)
        torch.manual_seed(0)
        with RandomOfTheCPU():
            return [torch.rand(3, device=device), torch.randperm(5, device=device), torch.rand_like(like)]

    for tensor, expected in zip(draw(device), draw("cpu"), strict=True):
        assert tensor.device.type == device
        torch.testing.assert_close(tensor.cpu(), expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_detections_equal_those_of_the_cpu(path: Path) -> None:
    detector = build(path).float()
    enliven(detector)
    detector.eval().double()
    batch = make_batch(detector, [3, 2], targets=False)
    with torch.inference_mode():
        expected = detector.postprocess(detector(batch), batch.infos)
        detector.cuda()
        actual = detector.postprocess(detector(batch.to("cuda")), batch.infos)
    for on_cuda, on_cpu in zip(actual, expected, strict=True):
        assert len(on_cuda) == len(on_cpu) > 0
        torch.testing.assert_close(on_cuda.scores, on_cpu.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(on_cuda.boxes, on_cpu.boxes, rtol=1e-4, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_losses_and_gradients_equal_those_of_the_cpu(path: Path) -> None:
    detector = build(path)
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    expected_losses, expected = losses_and_gradients(detector, "cpu")
    detector.load_state_dict(state)  # batch norms have moved their averages
    losses, gradients = losses_and_gradients(detector, "cuda")
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-3, atol=1e-4 * scale + 1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.gpu
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_training_step_in_bf16_is_finite(path: Path) -> None:
    detector = build(path).float().cuda().train()
    batch = make_batch(detector, [3, 0]).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        outputs = detector(batch)
    total = torch.stack(list(detector.criterion(outputs, batch.targets or ()).values())).sum()
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)
