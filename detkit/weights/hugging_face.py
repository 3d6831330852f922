"""Hugging Face's checkpoints of set-prediction detectors -> detkit's: `hf:FOLDER`, `hf:FILE` or `hf:OWNER/NAME`.

`config.json` says which detector it is. A file of this folder that reads one more of them has two functions, which
`FAMILIES` names:

    hf_config(config: dict[str, Any]) -> DetectorConfig      from config.json; UserError for what detkit lacks
    convert_keys(state) -> dict[str, Tensor]                 a state dict under detkit's names

Costs of the matching and weights of the losses are those of the paper and not of config.json, which has others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import torch
from pydantic import ValidationError
from torch import Tensor

from detkit.config import UserError, nearest
from detkit.detectors.build import DetectorConfig, build_detector
from detkit.detectors.detector import AnyDetector
from detkit.weights import conditional_detr, d_fine, dab_detr, deformable_detr, detr, lw_detr, rt_detr
from detkit.weights.files import Change, load_into, read_state, unchanged
from detkit.weights.hugging_face_config import read_input, read_json

URL = "https://huggingface.co/{name}/resolve/main/{file}"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Family:
    """
    config   from the content of config.json; raises UserError for what detkit lacks
    convert  a state dict, and that configuration -> the state dict under detkit's names
    licence  of the weights that its authors published
    """

    config: Callable[[dict[str, Any]], DetectorConfig]
    convert: Callable[[Mapping[str, Tensor], Any], Mapping[str, Tensor]]
    licence: str


def by_keys(convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]) -> Callable[..., Mapping[str, Tensor]]:
    """The `Family.convert` of a function that needs no configuration."""
    return lambda state, _: convert(state)


FAMILIES: dict[str, Family] = {  # by `model_type`
    "detr": Family(detr.hf_config, by_keys(detr.convert_keys), "Apache-2.0"),
    "deformable_detr": Family(
        deformable_detr.hf_config,
        lambda state, config: deformable_detr.convert_keys(state, refine=config.head.refine),
        "Apache-2.0",
    ),
    "conditional_detr": Family(conditional_detr.hf_config, by_keys(conditional_detr.convert_keys), "Apache-2.0"),
    "dab-detr": Family(dab_detr.hf_config, by_keys(dab_detr.convert_keys), "Apache-2.0"),
    "rt_detr": Family(rt_detr.hf_config, by_keys(rt_detr.convert_keys), "Apache-2.0"),
    "rt_detr_v2": Family(rt_detr.hf_config, by_keys(rt_detr.convert_keys), "Apache-2.0"),
    "d_fine": Family(d_fine.hf_config, by_keys(d_fine.convert_keys), "Apache-2.0"),
    "lw_detr": Family(lw_detr.hf_config, lw_detr.convert_for, "Apache-2.0"),
    "rf_detr": Family(lw_detr.hf_config, lw_detr.convert_for, "Apache-2.0"),
}


def load_hugging_face(source: str, change: Change = unchanged) -> AnyDetector:
    """A detector in evaluation mode, with the pixels of `preprocessor_config.json` or else the published ones.

    source  a folder with config.json and model.safetensors or pytorch_model.bin, one of these two files, or OWNER/NAME,
            which is downloaded once

    The label of a class is its id, as in config.json. Raises UserError if there is no such checkpoint, or if it is of a
    network that detkit does not have.
    """
    file = _weights_of(source)
    config_file = file.parent / "config.json"
    plain = read_json(config_file)
    model_type = plain.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"{config_file}: model_type: {model_type!r} is not known{nearest(str(model_type), list(FAMILIES))}"
        )
    family = FAMILIES[model_type]
    config = _config_of(family, plain, config_file)
    config = config.model_copy(update={"input": read_input(file.parent / "preprocessor_config.json", config.input)})
    if not isinstance(plain.get("id2label"), dict) or not plain["id2label"]:
        raise UserError(
            f'{config_file}: id2label is missing; add the names of the classes: "id2label": {{"0": "cat", "1": "dog"}}'
        )
    categories = detr.categories_beside(file, len(plain["id2label"]))
    detector = build_detector(change(config), categories)
    load_into(detector, family.convert(read_state(file, model_type), config), file, model_type)
    detector.notes.append(f"the weights that the authors of {model_type} published are under {family.licence}")
    return detector.eval()


def _config_of(family: Family, plain: dict[str, Any], file: Path) -> DetectorConfig:
    try:
        return family.config(plain)
    except KeyError as error:
        raise UserError(f"{file}: {error.args[0]}: missing") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = [".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")]
        raise UserError(f"{file}: {': '.join(filter(None, where))}") from error
    except (UserError, AttributeError, TypeError, ValueError) as error:  # a value of a type that is never there
        raise UserError(f"{file}: {error}") from error


def _weights_of(source: str) -> Path:
    """The file of weights that `source` names, after a download if it is OWNER/NAME."""
    path = Path(source)
    if path.name == "config.json":
        path = path.parent
    if path.is_file():
        return path
    if path.is_dir():
        return detr.weights_in(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return _downloaded(source)
    raise UserError(f"hf:{source}: no such folder or file; expected one, or OWNER/NAME of Hugging Face")


def _downloaded(name: str) -> Path:
    """The file of weights of OWNER/NAME in torch hub's folder; what is not there is downloaded, the weights last."""
    folder = Path(torch.hub.get_dir()) / "hugging_face" / name.replace("/", "--")
    for weights in WEIGHTS:
        if (folder / weights).is_file():
            return folder / weights
    folder.mkdir(parents=True, exist_ok=True)
    _download(name, "config.json", folder)
    _download(name, "preprocessor_config.json", folder)
    for weights in WEIGHTS:
        if _download(name, weights, folder):
            return folder / weights
    raise UserError(f"hf:{name}: has no {' or '.join(WEIGHTS)}")


def _download(name: str, file: str, folder: Path) -> bool:
    """Whether there is such a file."""
    url = URL.format(name=name, file=file)
    try:
        torch.hub.download_url_to_file(url, str(folder / file), progress=file in WEIGHTS)
    except HTTPError as error:
        if error.code == 404:
            return False
        raise _cannot_download(name, url, error) from error
    except (OSError, RuntimeError) as error:
        raise _cannot_download(name, url, error) from error
    return True


def _cannot_download(name: str, url: str, error: Exception) -> UserError:
    return UserError(
        f"hf:{name}: cannot download {url}: {error}; or fetch its files by other means, and name their folder"
    )
