"""Measures detections by the protocols of PASCAL VOC and COCO."""
