"""Volumetric ONNX networks: their configuration, engines, windows and the way back to the scan."""
