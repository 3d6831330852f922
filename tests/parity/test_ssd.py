"""SSD300 and SSDLite320 against torchvision's, from the same random weights."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from detkit.detectors.ssd import SSD, SSDConfig, build_ssd
from detkit.structures import Batch, Categories, ImageInfo, Objects, Target
from detkit.weights.torchvision import CONFIGS, convert_keys
from tests.parity.batches import in_order_of
from tests.parity.conftest import KINKS, TOOLS, AsRun, Ledger

OBJECTS = [0, 12]
CATEGORIES = Categories.of_names([f"class {i}" for i in range(90)])
MODELS = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, as_run: AsRun) -> tuple[str, SSD, nn.Module]:
    """(name, detkit's, torchvision's) with the same lively random weights, batch norms as in evaluation."""
    torch.manual_seed(3)
    config = CONFIGS[request.param]
    # the reference normalises pixels of 0-255 too, so that both see the same input to the last bit
    pixels = {"image_mean": config.input.mean, "image_std": config.input.std}
    reference = detection.__dict__[request.param](weights=None, weights_backbone=None, **pixels)
    enliven(reference, MODELS[request.param])
    assert isinstance(config, SSDConfig)
    detector = build_ssd(config, CATEGORIES)
    detector.load_state_dict(convert_keys(reference.state_dict()))
    return request.param, as_run(detector), reference


@torch.no_grad()
def enliven(model: nn.Module, size: int) -> None:
    """Scales every convolution, the first time it runs, to outputs with a standard deviation of one."""

    def scale(module: nn.Module, _: object, output: Tensor) -> Tensor:
        handles.pop(module).remove()
        std = output.std()
        if std == 0:
            return output
        for parameter in module.parameters():
            parameter.div_(std)
        return output / std

    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    handles = {module: module.register_forward_hook(scale) for module in convs}
    model.eval()([torch.rand(3, size, size) * 255])
    for head in (model.head.classification_head, model.head.regression_head):
        for conv in head.modules():
            if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                conv.weight.mul_(1.5 if head is model.head.classification_head else 0.5)


def make_batch(size: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.zeros(len(OBJECTS), 3, size, size, dtype=torch.uint8)
    targets = []
    for image, count in zip(images, OBJECTS, strict=True):
        coarse = torch.rand(1, 3, 12, 12, generator=generator)
        smooth = nn.functional.interpolate(coarse, (size, size), mode="bicubic")[0]
        image[:] = ((0.7 * smooth + 0.3 * torch.rand(3, size, size, generator=generator)) * 255).clamp(0, 255)
        # one object a cell of a grid, larger than the smallest prior: torchvision lets two objects take a prior, Caffe
        # and detkit do not; and all priors around a small object have the same IoU but for rounding
        cell = torch.cartesian_prod(torch.arange(4), torch.arange(3))[torch.randperm(12, generator=generator)[:count]]
        corner = cell * torch.tensor([75, 100]) + torch.rand(count, 2, generator=generator) * 10
        side = torch.rand(count, 2, generator=generator) * torch.tensor([10, 35]) + 66
        labels = torch.randint(0, len(CATEGORIES), (count,), generator=generator)
        targets.append(Target(Objects(torch.cat([corner, corner + side], dim=1), labels)))
    infos = [ImageInfo(i, (size, size), (size, size), (1.0, 1.0)) for i in range(len(OBJECTS))]
    return Batch(images, tuple(infos), tuple(targets))


def as_torchvision(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    assert batch.targets
    return list(batch.images.float()), [
        {"boxes": t.objects.boxes, "labels": t.objects.labels + 1} for t in batch.targets
    ]


def test_detections(pair: tuple[str, SSD, nn.Module], compare: Ledger) -> None:
    name, detector, reference = pair
    batch = make_batch(MODELS[name])
    detector.eval(), reference.eval()
    with torch.no_grad():
        actual = detector.postprocess(detector(batch), batch.infos)
        expected = reference(as_torchvision(batch)[0])
    assert min(len(detections) for detections in actual) >= 10, "too few detections to compare"
    pairs = [
        in_order_of(detections, public["boxes"], public["labels"] - 1)
        for detections, public in zip(actual, expected, strict=True)
    ]
    enter = partial(compare, "SSD", f"torchvision {name}")
    enter("detections: boxes (px)", [(boxes, e["boxes"]) for (boxes, _), e in zip(pairs, expected, strict=True)])
    enter("detections: scores", [(scores, e["scores"]) for (_, scores), e in zip(pairs, expected, strict=True)])


def test_losses_and_gradients(pair: tuple[str, SSD, nn.Module], compare: Ledger, way: str) -> None:
    name, detector, reference = pair
    batch = make_batch(MODELS[name])
    for model in (detector, reference):
        model.train()
        for norm in model.modules():  # two images on a map of 1 x 1 have no statistics worth the name
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
    losses = detector.criterion(detector(batch), batch.targets)
    expected = reference(*as_torchvision(batch))
    names = {"ssd_class": "classification", "ssd_box": "bbox_regression"}
    enter = partial(compare, "SSD", f"torchvision {name}")
    enter("two losses", [(losses[name], expected[other]) for name, other in names.items()])

    detector.zero_grad(), reference.zero_grad()
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    target = convert_keys({key: p.grad for key, p in reference.named_parameters()})
    actual = {key: p.grad for key, p in detector.named_parameters()}
    assert actual.keys() == target.keys()
    scale = {key: max(1.0, target[key].abs().max().item()) for key in target}
    pairs = [(actual[key] / scale[key], target[key] / scale[key]) for key in target]
    enter("gradients, all parameters", pairs, limit=KINKS if way == TOOLS else 1e-4)
