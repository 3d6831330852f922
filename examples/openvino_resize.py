"""Runs an OpenVINO file of `detkit export --input resize` without detkit: python openvino_resize.py model.xml a.jpg"""

import json
import sys

import cv2
import openvino

model = openvino.Core().read_model(sys.argv[1])
metadata = json.loads(model.get_rt_info("detkit").astype(str))
compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
picture = cv2.imread(sys.argv[2], cv2.IMREAD_COLOR_RGB)

outputs = compiled({"images": picture.transpose(2, 0, 1)[None]})
boxes, scores, labels, counts = (outputs[name] for name in ("boxes", "scores", "labels", "counts"))
for i in range(counts[0]):
    print(metadata["classes"]["names"][labels[0, i]], f"{scores[0, i]:.4f}", *(f"{side:.2f}" for side in boxes[0, i]))
