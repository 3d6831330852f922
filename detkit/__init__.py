"""detkit: the lineage of object detection, trainable in one readable package."""

__version__ = "0.2.0"
