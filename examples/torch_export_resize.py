"""Runs a .pt2 file of `detkit export --input resize` without detkit: python torch_export_resize.py model.pt2 a.jpg

torch.export.load runs any code that such a file brings: load none but your own.
"""

import json
import sys

import torch
from torchvision.io import ImageReadMode, decode_image

texts = {"detkit": ""}
module = torch.export.load(sys.argv[1], extra_files=texts).module()
metadata = json.loads(texts["detkit"])
picture = decode_image(sys.argv[2], ImageReadMode.RGB, apply_exif_orientation=True)

outputs = module(images=picture[None])
boxes, scores, labels, counts = (outputs[name] for name in ("boxes", "scores", "labels", "counts"))
for i in range(counts[0]):
    print(metadata["classes"]["names"][labels[0, i]], f"{scores[0, i]:.4f}", *(f"{side:.2f}" for side in boxes[0, i]))
