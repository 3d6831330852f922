"""Pure functions on tensors, without parameters: boxes, IoU, NMS, anchors, region pooling and box coding."""
