"""Tensors by name and nothing else, as `torch.save(model.state_dict(), ...)` writes them -> detkit's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

from torch import Tensor

from detkit.config import UserError

PREFIXES = ("module.", "model.", "_orig_mod.")  # of DistributedDataParallel, Lightning, torch.compile
Convert = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def convert_plain(
    state: Mapping[str, Tensor], fitting: Callable[[Mapping[str, Tensor]], int]
) -> tuple[str, Mapping[str, Tensor]]:
    """Whose names the tensors have, and the tensors under detkit's names: the reading of which most fit.

    fitting  how many tensors of a state dict under detkit's names fit the detector
    """
    readings: list[tuple[str, Mapping[str, Tensor]]] = []
    plain = _without_prefix(state)
    forms = [state] if plain is state else [plain, state]  # a publisher's own names may all begin with a prefix
    for (whose, convert), form in product(READINGS.items(), forms):
        try:
            readings.append((whose, convert(form)))
        except UserError:  # of a publisher who has no such names
            continue
    return max(readings, key=lambda reading: fitting(reading[1]))


def _without_prefix(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return _without_prefix({key.removeprefix(prefix): tensor for key, tensor in state.items()})
    return state


def _detkit(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return state


def _backbone(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A classifier of torchvision, whose convolutions may lie in `features`."""
    return {f"backbone.{key.removeprefix('features.')}": tensor for key, tensor in state.items()}


def _torchvision(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.torchvision import convert_keys  # seconds to import, so not at the head

    return convert_keys(state)


def _detr(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.detr import convert_keys

    return convert_keys(state)


def _deformable_detr(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.deformable_detr import convert_keys, refines

    return convert_keys(state, refine=refines(state))


def _conditional_detr(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.conditional_detr import convert_keys

    return convert_keys(state)


def _dab_detr(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.dab_detr import convert_keys

    return convert_keys(state)


def _rt_detr(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.rt_detr import convert_keys

    return convert_keys(state)


def _d_fine(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.d_fine import convert_keys

    return convert_keys(state)


def _lw_detr(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.lw_detr import convert_keys

    return convert_keys(state)


def _dino(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.dino import convert_keys

    return convert_keys(state)


def _detectron2(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.detectron2 import convert_keys

    return convert_keys(state)


def _yolox(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.yolox import convert_keys

    return convert_keys(state)


def _yolov5(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.yolov5 import convert_keys

    return convert_keys(state)


def _yolov7(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    from detkit.weights.yolov7 import convert_keys

    return convert_keys(state)


READINGS: dict[str, Convert] = {  # of readings that fit equally well the first counts
    "a detector of detkit": _detkit,
    "a backbone alone": _backbone,
    "a detector of torchvision": _torchvision,
    "a DETR": _detr,
    "a Deformable DETR": _deformable_detr,
    "a Conditional DETR": _conditional_detr,
    "a DAB-DETR": _dab_detr,
    "a DINO": _dino,
    "an RT-DETR": _rt_detr,
    "a D-FINE": _d_fine,
    "an LW-DETR or RF-DETR": _lw_detr,
    "a detector of Detectron2": _detectron2,
    "a YOLOX": _yolox,
    "a YOLOv5": _yolov5,
    "a YOLOv7": _yolov7,
}
