"""Runs an ONNX file of `detkit export` without detkit: python onnx_numpy.py model.onnx picture.jpg"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
text = session.get_modelmeta().custom_metadata_map.get("detkit")
metadata = json.loads(text) if text else sys.exit(f"{sys.argv[1]}: not a file of `detkit export`: it has no metadata")
if metadata["pictures"] != "exact" or metadata["raw"] or metadata["proposals"]:
    sys.exit(f"{sys.argv[1]}: this example is for a file without --input resize, --raw and proposals")
picture = cv2.imread(sys.argv[2], cv2.IMREAD_COLOR_RGB)
if picture is None:
    sys.exit(f"{sys.argv[2]}: no picture that OpenCV reads")
height, width = picture.shape[:2]

rule, stride = metadata["input"]["resize"], metadata["stride"]
h, w, x, y = height, width, 0, 0  # the size of the resized picture, and where it lies on its canvas
if rule["name"] == "stretch":
    h = w = rule["size"]
elif rule["name"] == "letterbox":
    h, w = (max(1, side * rule["size"] // max(height, width)) for side in (height, width))
    x, y = (rule["size"] - w) // 2, (rule["size"] - h) // 2
elif rule["name"] == "short_side":
    scale = min(rule["size"] / min(height, width), rule["max_size"] / max(height, width))
    h, w = (max(1, int(side * scale + 0.5)) for side in (height, width))
canvas = metadata["canvas"] or [-(-side // stride) * stride for side in (h, w)]
images = np.zeros((1, *canvas, 3), np.uint8)
images[0, y : y + h, x : x + w] = cv2.resize(picture, (w, h))

inputs = {
    "images": images.transpose(0, 3, 1, 2),
    "sizes": np.array([[h, w]]),
    "original_sizes": np.array([[height, width]]),
}
boxes, scores, labels, counts = session.run(["boxes", "scores", "labels", "counts"], inputs)
for i in range(counts[0]):
    print(metadata["classes"]["names"][labels[0, i]], f"{scores[0, i]:.4f}", *(f"{side:.2f}" for side in boxes[0, i]))
