"""Measuring detections: VOC and COCO, one evaluator everywhere."""
