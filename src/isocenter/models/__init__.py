"""One file a model. Only this layer and `runtime` may import torch or onnxruntime, inside functions."""
