"""Text encoders: folders as they are published, turned into ONNX graphs without torch."""
