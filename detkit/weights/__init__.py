"""Public checkpoints -> our detectors, one file per source."""
