"""Hugging Face's folders: small random models that transformers wrote give the same outputs in detkit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from detkit.config import UserError
from detkit.engine.sources import load_detector, read_weights
from detkit.nn.input import InputConfig, ShortSideConfig, StretchConfig
from detkit.structures import Categories
from detkit.weights import detr
from detkit.weights.hugging_face import FAMILIES, load_hugging_face
from detkit.weights.hugging_face_config import read_input

transformers = pytest.importorskip("transformers")

NAMES = ("cat", "dog", "cow")
SMALL = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 7,
    "dropout": 0.0,
    "id2label": dict(enumerate(NAMES)),
}
ONE_LEVEL: dict[str, Any] = {**SMALL, "decoder_ffn_dim": 48, "use_timm_backbone": False}
HYBRID = {**SMALL, "encoder_hidden_dim": 32, "d_model": 32, "decoder_in_channels": [32] * 3, "num_queries": 9}
GROUPED = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_ffn_dim": 40,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 8,
    "num_queries": 9,
    "group_detr": 2,
    "id2label": dict(enumerate(NAMES)),
}
HGNET_B0 = {
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "hidden_sizes": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "use_learnable_affine_block": True,
}


def resnet18(levels: int, config_class: str = "ResNetConfig") -> Any:
    stages = [f"stage{number}" for number in range(5 - levels, 5)]
    sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    return getattr(transformers, config_class)(**sizes, out_features=stages)


def deformable(**fields: Any) -> Any:
    config = transformers.DeformableDetrConfig(backbone_config=resnet18(3), d_model=32, **ONE_LEVEL, **fields)
    return transformers.DeformableDetrForObjectDetection(config)


def d_fine() -> Any:
    from transformers.models.hgnet_v2 import HGNetV2Config

    backbone = HGNetV2Config(**HGNET_B0, out_features=["stage2", "stage3", "stage4"])
    fields = {"encoder_in_channels": [256, 512, 1024], "hidden_expansion": 0.5, "depth_mult": 0.34}
    return transformers.DFineForObjectDetection(transformers.DFineConfig(backbone_config=backbone, **HYBRID, **fields))


def hybrid(name: str) -> Any:
    backbone = resnet18(3, "RTDetrResNetConfig")
    fields = {**HYBRID, "encoder_in_channels": [128, 256, 512]}
    config = getattr(transformers, f"{name}Config")(backbone_config=backbone, **fields)
    return getattr(transformers, f"{name}ForObjectDetection")(config)


def one_level(name: str, **fields: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(backbone_config=resnet18(1), **ONE_LEVEL, **fields)
    return getattr(transformers, f"{name}ForObjectDetection")(config)


def lw_detr() -> Any:
    from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig

    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "window_block_indices": [0, 2]}
    backbone = LwDetrViTConfig(**sizes, out_indices=[2, 3])
    config = transformers.LwDetrConfig(backbone_config=backbone, projector_scale_factors=[2.0, 0.5], **GROUPED)
    return transformers.LwDetrForObjectDetection(config)


def rf_detr() -> Any:
    """With the authors' epsilon in the projector, of which transformers has ten times."""
    from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "num_windows": 2, "patch_size": 16}
    backbone = RfDetrDinov2Config(**sizes, image_size=96, out_indices=[1, 3])
    return transformers.RfDetrForObjectDetection(
        transformers.RfDetrConfig(backbone_config=backbone, layer_norm_eps=1e-6, **GROUPED)
    )


READINGS = {
    "detr": "a DETR",
    "conditional_detr": "a Conditional DETR",
    "dab-detr": "a DAB-DETR",
    "deformable_detr": "a Deformable DETR",
    "rt_detr": "an RT-DETR",
    "rt_detr_v2": "an RT-DETR",
    "d_fine": "a D-FINE",
    "lw_detr": "an LW-DETR or RF-DETR",
    "rf_detr": "an LW-DETR or RF-DETR",
}
MODELS: dict[str, Callable[[], Any]] = {
    "detr": lambda: one_level("Detr", d_model=32),
    "conditional_detr": lambda: one_level("ConditionalDetr", d_model=32),
    "dab-detr": lambda: one_level("DabDetr", hidden_size=32),
    "deformable_detr": deformable,
    "deformable_detr refined": lambda: deformable(with_box_refine=True),  # transformers has one classifier for all
    "deformable_detr two-stage": lambda: deformable(with_box_refine=True, two_stage=True, two_stage_num_proposals=9),
    "rt_detr": lambda: hybrid("RTDetr"),
    "rt_detr_v2": lambda: hybrid("RTDetrV2"),
    "d_fine": d_fine,
    "lw_detr": lw_detr,
    "rf_detr": rf_detr,
}


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Parameters that tell queries and cells apart, and batch norms as after a training."""
    for name, module in model.named_modules():
        if "BatchNorm" in type(module).__name__:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=0.5 if "offsets" in name else 1.0)
            if module.bias is not None and "sampling_offsets" not in name:
                module.bias.add_(torch.randn_like(module.bias), alpha=0.1)


def folder_of(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return folder_of(MODELS["detr"](), tmp_path_factory.mktemp("detr"))


def with_config(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a folder with other fields in its config.json; None: without the field."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_family_has_a_model_here() -> None:
    assert {name.split()[0] for name in MODELS} == set(FAMILIES) == set(READINGS)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_outputs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    enliven(model)
    detector, config = load_detector(f"hf:{folder_of(model, tmp_path)}")
    assert config is None
    assert not detector.training
    assert detector.categories == Categories(NAMES, (0, 1, 2))
    assert detector.notes == [f"the weights that the authors of {name.split()[0]} published are under Apache-2.0"]
    width = 128 if name in ("lw_detr", "rf_detr") else 160  # transformers has their windows right in squares only
    images, sizes = torch.randn(1, 3, 128, width), torch.tensor([[128, width]])
    outputs, expected = detector.network(images, sizes), model(pixel_values=images)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(outputs.logits[-1], expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs.boxes[-1], expected.pred_boxes, atol=1e-4, rtol=1e-4)
    # `train.init` takes the file of tensors alone too, by the names in it.
    weights, own = read_weights(str(tmp_path / "model.safetensors"), detector), detector.state_dict()
    assert {key for key in own if not key.endswith("num_batches_tracked")} <= weights.state.keys()
    assert all(torch.equal(tensor, own[key]) for key, tensor in weights.state.items())
    assert weights.reading == f"tensors of {READINGS[name.split()[0]]}"


def test_a_file_of_either_kind(tiny_detr: Path, tmp_path: Path) -> None:
    state = load_hugging_face(str(tiny_detr)).state_dict()
    shutil.copy(tiny_detr / "config.json", tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(load_file(tiny_detr / "model.safetensors"), file)
    for source in (file, tmp_path):
        loaded = load_hugging_face(str(source)).state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("detr_resnet50", {"backbone": "resnet50", "use_timm_backbone": True, "dilation": False}),
        ("detr_resnet101_dc5", {"backbone": "resnet101", "use_timm_backbone": True, "dilation": True}),
        ("detr_resnet101", {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet101"}}),
        (
            "detr_resnet50",
            {"backbone_config": {"model_type": "resnet", "layer_type": "bottleneck", "depths": [3, 4, 6, 3]}},
        ),
    ],
)
def test_the_published_configurations(name: str, fields: dict[str, Any]) -> None:
    """As the config.json of transformers 4 and of 5 write them."""
    plain = transformers.DetrConfig().to_dict()
    del plain["backbone_config"]
    assert detr.hf_config({**plain, **fields}) == detr.CONFIGS[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "yolos"}, r"model_type: 'yolos' is not known; known: detr, deformable_detr, "),
        ({"model_type": None}, r"model_type: None is not known"),
        ({"position_embedding_type": "learned"}, "position_embedding_type: detkit has 'sine' only, found 'learned'"),
        ({"activation_function": "tanh"}, "activation_function: detkit has relu, .*, found 'tanh'"),
        ({"decoder_ffn_dim": 64}, "decoder_ffn_dim: detkit has the encoder's only, 48, found 64"),
        ({"backbone_config": {"model_type": "swin"}}, "backbone: detkit has resnet18, .* for it, found 'swin'"),
        ({"backbone_config": {"model_type": "resnet50"}}, "backbone: detkit has resnet18, .* for it, found 'resnet50'"),
        (
            {"backbone_config": {"model_type": "timm_backbone", "backbone": "mobilenetv3_large_100"}},
            "backbone: detkit has resnet18, .* for it, found 'mobilenetv3_large_100'",
        ),
        ({"backbone_config": "resnet50"}, "has no attribute"),
        ({"encoder_layers": None}, "encoder_layers: missing"),
        ({"num_queries": 0}, "num_queries: Input should be greater than or equal to 1"),
        ({"id2label": None}, 'id2label is missing; add the names of the classes: "id2label": '),
        ({"id2label": {"0": 1, "1": None}}, r"id2label: expected names of classes in quotes, found \(1, None\)"),
        ({"backbone_config": {"model_type": "resnet", "layer_type": "basic", "depths": None}}, "not iterable"),
        ({"id2label": {"0": "cat", "2": "cow"}}, "expected id2label with the names of the classes 0 to 1"),
        ({"num_queries": 8}, "not the weights of detr: size mismatch for head.queries"),
    ],
)
def test_what_detkit_lacks_is_refused(changes: dict[str, Any], message: str, tiny_detr: Path, tmp_path: Path) -> None:
    folder = with_config(tiny_detr, tmp_path / "changed", **changes)
    with pytest.raises(UserError, match=f"^{folder}/[^\n]*{message}[^\n]*$"):
        load_hugging_face(str(folder))


def test_files_that_are_not_there_or_not_json(tiny_detr: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hf:/no/such/folder: no such folder or file; expected one, or OWNER/NAME"):
        load_detector("hf:/no/such/folder")
    with pytest.raises(UserError, match=r"no weights here; expected model\.safetensors or pytorch_model\.bin"):
        load_detector(f"hf:{tmp_path}")
    shutil.copy(tiny_detr / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"config\.json: cannot read it: No such file"):
        load_detector(f"hf:{tmp_path}")
    deep = "[" * 100_000
    for content, message in (("{", "not JSON"), (deep, "not JSON"), ("[]", "expected a JSON object, found list")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=rf"config\.json: {message}"):
            load_detector(f"hf:{tmp_path}")


def test_a_folder_of_hugging_face_that_is_not_named_as_one(tiny_detr: Path) -> None:
    for source in (tiny_detr, tiny_detr / "model.safetensors"):
        with pytest.raises(UserError, match=f"^{source}: weights of Hugging Face, .* name them hf:{source}$"):
            load_detector(source)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rescale_factor": None}, "float"),
        ({"rescale_factor": 0}, "rescale_factor: expected more than 0, found 0"),
        ({"image_mean": [0, 0, 0], "image_std": [0, 1, 1]}, r"image_std: expected more than 0, found \[0, 1, 1\]"),
    ],
)
def test_pixels_that_cannot_be(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=f"^{file}: [^\n]*{message}[^\n]*$"):
        read_input(file, PUBLISHED)


PUBLISHED = InputConfig(resize=StretchConfig(size=640))
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    ("fields", "resize", "mean", "std"),
    [
        (
            {**IMAGENET, "size": {"shortest_edge": 480, "longest_edge": 900}, "rescale_factor": 1 / 255},
            ShortSideConfig(size=480, max_size=900),
            (123.675, 116.28, 103.53),
            (58.395, 57.12, 57.375),
        ),
        (
            {**IMAGENET, "size": 800, "max_size": 1333, "do_normalize": True},
            ShortSideConfig(),
            (123.675, 116.28, 103.53),
            (58.395, 57.12, 57.375),
        ),
        (
            {**IMAGENET, "size": {"height": 320, "width": 320}, "do_normalize": False},
            StretchConfig(size=320),
            (0.0, 0.0, 0.0),
            (255.0, 255.0, 255.0),
        ),
        ({"do_rescale": False}, StretchConfig(size=640), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ],
)
def test_pixels_of_the_preprocessor(
    fields: dict[str, Any], resize: Any, mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path
) -> None:
    file = tmp_path / "preprocessor_config.json"
    assert read_input(file, PUBLISHED) == PUBLISHED
    file.write_text(json.dumps(fields))
    config = read_input(file, PUBLISHED)
    assert config.resize == resize
    assert config.mean == pytest.approx(mean)
    assert config.std == pytest.approx(std)


def test_a_size_that_detkit_lacks(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"size": {"height": 320, "width": 640}}))
    with pytest.raises(UserError, match=r"preprocessor_config\.json: size: detkit has a shortest edge or equal height"):
        read_input(file, PUBLISHED)


def test_options_change_the_detector(tiny_detr: Path) -> None:
    detector, _ = load_detector(f"hf:{tiny_detr}", ["model.input.resize.size=320"])
    assert detector.input.resize == ShortSideConfig(size=320, max_size=1333)


def test_a_model_of_the_hub_is_downloaded_once(
    tiny_detr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, file: str, **_: Any) -> None:
        asked.append(url)
        source = tiny_detr / url.rpartition("/")[2]
        if not source.exists():
            raise HTTPError(url, 404, "Not Found", None, None)  # type: ignore[arg-type]
        shutil.copy(source, file)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        detector, _ = load_detector("hf:owner/detr-tiny")
    assert detector.categories.names == NAMES
    start = "https://huggingface.co/owner/detr-tiny/resolve/main"
    files = ["config.json", "preprocessor_config.json", "model.safetensors"]
    assert asked == [f"{start}/{file}" for file in files]


def test_a_model_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error: Exception = URLError("Name or service not known")

    def fail(url: str, *_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        UserError, match=r"^hf:owner/name: cannot download https://\S+config\.json: .*; or fetch its files"
    ):
        load_hugging_face("owner/name")
    error = HTTPError("url", 404, "Not Found", None, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^hf:owner/name: has no model\.safetensors or pytorch_model\.bin"):
        load_hugging_face("owner/name")
