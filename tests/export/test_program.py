"""Which inputs an exported program has, and what may change in them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from detkit.config import UserError
from detkit.detectors.build import build_detector
from detkit.export.program import DEFAULT_CANVAS, Form, complete_form, example_inputs, export_program, output_names
from detkit.structures import Categories, Size
from tests.cli_support import FAST
from tests.engine.settings import make_config
from tests.export.detectors import Cells, Proposed


@pytest.mark.parametrize(
    ("rule", "form", "batch", "canvas"),
    [
        ("stretch", Form(), None, (64, 64)),
        ("letterbox", Form(canvas=(64, 64)), None, (64, 64)),
        ("short_side", Form(), None, None),
        ("short_side", Form(raw=True), 1, (48, 72)),
        ("short_side", Form(batch=3, canvas=(41, 48)), 3, (48, 48)),  # a multiple of the stride
        ("keep", Form(), None, None),
        ("keep", Form(raw=True, batch=4), 4, DEFAULT_CANVAS),
        ("keep", Form(pictures="resize", canvas=(10, 20)), None, (16, 24)),  # it resizes nothing
        ("stretch", Form(pictures="resize"), None, None),
        ("short_side", Form(pictures="resize", canvas=(51, 33)), None, (51, 33)),  # of pictures, which have any size
        ("letterbox", Form(pictures="resize", raw=True), 1, DEFAULT_CANVAS),
    ],
)
def test_batch_and_canvas(rule: str, form: Form, batch: int | None, canvas: Size | None) -> None:
    assert complete_form(form, Cells(rule)) == Form(form.pictures, form.raw, batch, canvas)


def test_a_detector_may_need_one_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cells, "needs_fixed_canvas", True)
    assert complete_form(Form(), Cells("keep")).canvas == DEFAULT_CANVAS
    assert complete_form(Form(), Cells("short_side")).canvas == (48, 72)


@pytest.mark.parametrize("rule", ["stretch", "letterbox"])
def test_a_square_input_has_its_own_size(rule: str) -> None:
    with pytest.raises(UserError, match=r"--size 32x64: this detector takes pictures on 64 x 64 px; leave --size out"):
        complete_form(Form(canvas=(32, 64)), Cells(rule))


def test_examples_have_the_inputs_of_the_form() -> None:
    assert list(example_inputs(Cells(), Form())) == ["images", "sizes", "original_sizes"]
    assert list(example_inputs(Cells(), Form(raw=True))) == ["images", "sizes"]
    assert list(example_inputs(Cells(), Form(pictures="resize"))) == ["images"]
    assert list(example_inputs(Proposed(), Form(pictures="resize"))) == ["images", "proposals"]
    inputs = example_inputs(Cells(), Form(batch=3, canvas=(64, 96)))
    assert inputs["images"].shape == (3, 3, 64, 96)
    assert inputs["images"].dtype == torch.uint8
    assert inputs["sizes"].tolist() == [[64, 96]] * 3


def run(form: Form, rule: str, batch: int, size: Size, raw_too: bool = False) -> dict[str, Tensor]:
    """What the program of `Cells(rule)` gives for grey pictures."""
    detector = Cells(rule)
    program = export_program(detector, complete_form(form, detector), raw_too=raw_too).module()
    names = list(example_inputs(detector, form))
    sizes = torch.tensor([size] * batch)
    inputs = {"images": torch.full((batch, 3, *size), 99, dtype=torch.uint8), "sizes": sizes, "original_sizes": sizes}
    return dict(program(**{name: inputs[name] for name in names}))


def test_batch_and_sides_change_where_they_may() -> None:
    free = run(Form(), "keep", 3, (24, 40), raw_too=True)
    assert free["boxes"].shape == (3, 20, 4)
    assert free["raw.logits"].shape == (3, 3, 3, 5)
    assert tuple(free) == output_names(Cells("keep"), complete_form(Form(), Cells("keep")), raw_too=True)
    with pytest.raises(AssertionError, match="images"):
        run(Form(batch=2), "keep", 3, (24, 40))
    with pytest.raises(AssertionError, match="images"):
        run(Form(), "stretch", 2, (24, 40))


def test_any_number_of_images_has_proposals() -> None:
    """torch.export takes the two numbers of images for different ones, unless it is told."""
    backbone, roi = {"name": "lenet5"}, {**FAST["roi"], "hidden": [8]}
    config = make_config({"name": "shapes"}, f"model={json.dumps({**FAST, 'backbone': backbone, 'roi': roi})}")
    detector = build_detector(config.model, Categories.of_names(["cat", "dog"]))
    program = export_program(detector, complete_form(Form(), detector)).module()
    for batch in (1, 2, 3):
        inputs = {"sizes": torch.tensor([[64, 96]] * batch), "original_sizes": torch.tensor([[64, 96]] * batch)}
        proposals = torch.tensor([4.0, 4.0, 40.0, 52.0]).repeat(batch, 5, 1)
        images = torch.zeros(batch, 3, 64, 96, dtype=torch.uint8)
        assert program(images=images, proposals=proposals, **inputs)["counts"].shape == (batch,)


def test_a_raw_program_is_the_network_alone() -> None:
    detector, form = Cells(), complete_form(Form(raw=True), Cells())
    program = export_program(detector, form)
    assert output_names(detector, form) == ("raw.logits",)
    assert not [node for node in program.graph.nodes if "suppress" in str(node.target) or "topk" in str(node.target)]


def test_a_network_that_suppresses_has_no_raw_program() -> None:
    config = make_config({"name": "shapes"})
    detector = build_detector(config.model, Categories.of_names(["cat"]))
    with pytest.raises(
        UserError, match=r"--raw: FasterRCNN suppresses proposals inside its network; export it without"
    ):
        export_program(detector, complete_form(Form(raw=True), detector))
