"""ONNX graphs with masked convolutions, parity checks, latency benchmarks."""
