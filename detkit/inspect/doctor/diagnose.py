"""What is wrong with the data of a configuration, for its detector: everything the doctor knows, the worst first."""

from __future__ import annotations

from detkit.data.dataset import plural
from detkit.engine.settings import RunConfig
from detkit.evaluation.store import DetectionStore
from detkit.inspect.doctor.augmentation import augmentation_findings
from detkit.inspect.doctor.capacity import capacity_findings, size_tables
from detkit.inspect.doctor.disagreement import disagreement_findings
from detkit.inspect.doctor.findings import Diagnosis, Finding, Severity
from detkit.inspect.doctor.labels import class_table, label_findings
from detkit.inspect.doctor.matching import matching_findings, matching_tables
from detkit.inspect.doctor.network_input import Shapes, network_view
from detkit.inspect.doctor.pictures import picture_findings
from detkit.inspect.doctor.reading import Split, read_splits
from detkit.nn.input import KeepConfig

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


def diagnose(config: RunConfig, *, store: DetectionStore | None = None) -> Diagnosis:
    """Reads both splits, flawed as they are, and every picture; nothing is trained.

    store  the detections of a trained detector on the validation data, by which labels are judged

    Raises UserError if the data cannot be read at all.
    """
    splits = read_splits(config.data)
    shapes = Shapes(config, splits[0].dataset.categories)
    views = [network_view(split, shapes.image_input) for split in splits]
    augmentation, augmentation_tables = augmentation_findings(config, splits[0])
    findings = [
        *label_findings(splits),
        *matching_findings(config.model, shapes, views),
        *capacity_findings(config.model, shapes, views),
        *augmentation,
        *picture_findings(splits),
        *([] if store is None else disagreement_findings(store)),
    ]
    tables = [
        class_table(splits),
        *size_tables(views),
        *matching_tables(config.model, shapes, views),
        *augmentation_tables,
    ]
    return Diagnosis(_subject(config, splits), sorted(findings, key=_rank), tables)


def _rank(finding: Finding) -> tuple[int, float]:
    """Errors first, and of one severity what concerns the largest part."""
    return SEVERITIES.index(finding.severity), -finding.count / max(1, finding.total)


def _subject(config: RunConfig, splits: list[Split]) -> str:
    parts = [
        f"{split.name} {plural(len(split.dataset), 'image')} and {plural(len(split.dataset.objects), 'object')}"
        for split in splits
    ]
    resize = config.model.input.resize
    size = "as large as they are" if isinstance(resize, KeepConfig) else f"{resize.name} {resize.size}"
    return f"{config.data.name} {config.data.root}: {', '.join(parts)}; for {config.model.name}, images {size}"
