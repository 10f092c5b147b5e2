"""What runs a network: ONNX Runtime, TensorRT, and the CUDA driver they share."""
