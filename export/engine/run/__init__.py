"""A program runs: interpreter, threads, sessions, profiles; what is left to ONNX Runtime."""
