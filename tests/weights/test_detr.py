"""Public DETR checkpoints load completely, with the keys of either publisher, and nothing else does."""

import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.engine.sources import load_detector
from detkit.structures import Categories
from detkit.weights.detr import COCO_CATEGORIES, CONFIGS, FILES, convert_keys, load_detr
from tests.reference import detr as reference

NAME = "detr_resnet50"
RENAMED = {
    "backbone.0.body.": "model.backbone.conv_encoder.model.",
    "input_proj.": "model.input_projection.",
    "query_embed.": "model.query_position_embeddings.",
    "class_embed.": "class_labels_classifier.",
    "bbox_embed.": "bbox_predictor.",
    "transformer.decoder.norm.": "model.decoder.layernorm.",
    "transformer.": "model.",
    "multihead_attn": "encoder_attn",
    "linear1": "fc1",
    "linear2": "fc2",
    ".norm1.": ".self_attn_layer_norm.",
}


@pytest.fixture(scope="module")
def facebook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file such as facebookresearch publishes, with random weights, and those weights."""
    torch.manual_seed(0)
    state = reference.DETR().state_dict()
    path = tmp_path_factory.mktemp("facebook") / "detr-r50.pth"
    torch.save({"model": state}, path)
    return path, state


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A folder such as Hugging Face publishes, of a detector of three classes, and its state in memory."""
    transformers = pytest.importorskip("transformers")
    names = dict(enumerate(["cat", "dog", "cow"]))
    torch.manual_seed(0)
    model = transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            backbone_config=transformers.ResNetConfig(out_features=["stage4"]),
            use_timm_backbone=False,
            id2label=names,
            label2id={name: label for label, name in names.items()},
        )
    )
    folder = tmp_path_factory.mktemp("hugging_face")
    model.save_pretrained(folder)
    return folder, model.state_dict()


def as_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """facebookresearch's weights with the keys of Hugging Face's published files, whose backbone is timm's."""
    renamed = {}
    for key, tensor in state.items():
        name = key
        for facebook, hugging_face in RENAMED.items():
            name = name.replace(facebook, hugging_face)
        last = ".norm3." if "decoder" in name else ".norm2."
        name = name.replace(last, ".final_layer_norm.").replace(".norm2.", ".encoder_attn_layer_norm.")
        if "in_proj_" in name:
            for part, letter in zip(tensor.chunk(3), "qkv", strict=True):
                renamed[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            renamed[name] = tensor
        if name.endswith("running_var"):
            renamed[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return renamed


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_facebooks_file(facebook: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = facebook
    detr = load_detr(NAME, path)
    assert not detr.training
    assert detr.categories == COCO_CATEGORIES
    converted = detr.state_dict()
    assert torch.equal(converted["backbone.layer3.4.conv2.weight"], state["backbone.0.body.layer3.4.conv2.weight"])
    assert torch.equal(converted["head.queries"], state["query_embed.weight"])
    packed = state["transformer.decoder.layers.5.multihead_attn.in_proj_weight"]
    assert torch.equal(converted["head.decoder.layers.5.cross_attention.k.weight"], packed[256:512])
    out = state["transformer.encoder.layers.0.self_attn.out_proj.bias"]
    assert torch.equal(converted["head.encoder.layers.0.attention.out.bias"], out)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_hugging_faces_file_with_the_backbone_of_timm(
    suffix: str, facebook: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    path, state = facebook
    renamed = as_timm(state)
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(renamed, file)
    else:
        save_file({key: tensor.contiguous() for key, tensor in renamed.items()}, file)
    assert_same(load_detr(NAME, file).state_dict(), load_detr(NAME, path).state_dict())


def test_hugging_faces_folder(hugging_face: tuple[Path, dict[str, Tensor]]) -> None:
    """Its file has the keys of older versions, its module those of version 5: both convert to the same."""
    folder, state = hugging_face
    detr, config = load_detector(f"detr:{NAME}:{folder}")
    assert config is None
    assert detr.categories == Categories(("cat", "dog", "cow"), (0, 1, 2))
    assert_same(dict(detr.state_dict()), convert_keys(state))
    assert_same(dict(load_detr(NAME, folder / "model.safetensors").state_dict()), convert_keys(state))


def test_classes_without_names(hugging_face: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((hugging_face[0] / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=f"^{file}: has 3 classes and no config.json beside it that names them"):
        load_detr(NAME, file)
    for content in ("{", "[]", json.dumps({"id2label": {"0": "cat"}})):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config.json: expected id2label with the names of the classes 0 to 2"):
            load_detr(NAME, file)


def test_coco_names_are_at_their_ids() -> None:
    assert COCO_CATEGORIES.ids == tuple(range(91))
    names = [COCO_CATEGORIES.names[label] for label in (0, 1, 12, 13, 90)]
    assert names == ["N/A", "person", "N/A", "stop sign", "toothbrush"]


@pytest.mark.parametrize("name", FILES)
def test_every_model_of_the_hub(name: str) -> None:
    with torch.device("meta"):
        source = reference.DETR("resnet101" if "101" in name else "resnet50", dilation="dc5" in name)
        detr = build_detector(CONFIGS[name], COCO_CATEGORIES)
    assert {key: value.shape for key, value in convert_keys(source.state_dict()).items()} == {
        key: value.shape for key, value in detr.state_dict().items()
    }
    assert CONFIGS[name].backbone.dilation == ("dc5" in name)


def test_weights_of_another_depth(facebook: tuple[Path, dict[str, Tensor]]) -> None:
    with pytest.raises(UserError, match=r"not the weights of detr_resnet101: Missing key"):
        load_detr("detr_resnet101", facebook[0])


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match=f"^detr:resnet50: not known; known: {', '.join(FILES)}$"):
        load_detector("detr:resnet50")


def test_a_key_that_neither_publisher_has() -> None:
    with pytest.raises(UserError, match=r"'mask_head\.lay1\.weight' is no key of a DETR detector"):
        convert_keys({"class_embed.bias": torch.zeros(1), "mask_head.lay1.weight": torch.zeros(1)})


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64])
def test_a_file_that_is_no_checkpoint(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: not a DETR checkpoint: [^\n]*$"):
        load_detr(NAME, path)


def test_files_and_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights here; expected model\.safetensors or pytorch_model\.bin"):
        load_detr(NAME, tmp_path)
    for suffix in ("pth", "safetensors"):
        with pytest.raises(UserError, match=f"{tmp_path}/none.{suffix}: cannot read this checkpoint: .*No such file"):
            load_detr(NAME, tmp_path / f"none.{suffix}")
    torch.save({"model": {"class_embed.weight": torch.zeros(1)}}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth: not a DETR checkpoint: it has no classifier"):
        load_detr(NAME, tmp_path / "part.pth")


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(UserError, match=r"detr_resnet50: cannot download https://\S+e632da11\.pth: .*; or fetch it"):
        load_detr(NAME)
