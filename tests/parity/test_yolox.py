"""YOLOX with real weights: the text detector that ships as ONNX in the wheel of ddddocr (MIT), a YOLOX-tiny."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.yolox import YOLOX, build_yolox
from detkit.nn.blocks import ConvBlock
from detkit.structures import Categories
from detkit.weights.yolox import yolox_config

SIZE = 416


@pytest.fixture(scope="module")
def onnx_file() -> Path:
    """The file of the installed package, which is not imported."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    try:
        path = Path(str(distribution("ddddocr").locate_file("ddddocr/common_det.onnx")))
    except PackageNotFoundError:
        path = Path("absent")
    if not path.is_file():
        pytest.skip("the package ddddocr, which has a trained YOLOX, is not installed")
    return path


def in_order(detector: YOLOX, images: Tensor) -> list[nn.Conv2d]:
    """The convolutions as they run, which is their order in the file too."""
    order: list[nn.Conv2d] = []
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda conv, _, __: order.append(conv))  # type: ignore[arg-type]
    with torch.no_grad():
        detector.network(images, torch.tensor([[SIZE, SIZE]]))
    return order


@torch.no_grad()
def fill(detector: YOLOX, path: Path, order: list[nn.Conv2d]) -> None:
    """The file's norms are folded into its convolutions: here they add the bias and change nothing else."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    norms = {module.conv: module.norm for module in detector.modules() if isinstance(module, ConvBlock)}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    for conv, node in zip(order, nodes, strict=True):
        weight, bias = arrays[node.input[1]], arrays[node.input[2]]
        assert conv.weight.shape == weight.shape
        conv.weight.copy_(weight)
        if conv in norms:
            norm = norms[conv]
            assert isinstance(norm, nn.BatchNorm2d)
            norm.load_state_dict(
                {
                    "weight": torch.ones_like(bias),
                    "bias": bias,
                    "running_mean": torch.zeros_like(bias),
                    "running_var": torch.full_like(bias, 1 - norm.eps),
                    "num_batches_tracked": torch.tensor(0),
                }
            )
        else:
            assert conv.bias is not None
            conv.bias.copy_(bias)


def test_outputs_of_a_trained_yolox_tiny(onnx_file: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    images = torch.rand(1, 3, SIZE, SIZE) * 255
    detector = build_yolox(yolox_config("yolox_tiny"), Categories.of_names(["text"])).eval()
    fill(detector, onnx_file, in_order(detector, images))
    with torch.no_grad():
        outputs = detector.network(images, torch.tensor([[SIZE, SIZE]]))
    scores = torch.cat([outputs.objectness[..., None], outputs.logits], dim=2).sigmoid()
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(
        torch.cat([outputs.boxes, scores], dim=2), torch.from_numpy(expected), atol=1e-4, rtol=1e-4
    )
