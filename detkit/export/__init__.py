"""A detector as a file that runs without detkit: ONNX, torch.export, OpenVINO; and such a file as a detector again."""
