"""The only tolerances in the tests: (rtol, atol) per computation and dtype."""

FLOAT32 = (1e-4, 1e-5)
"""One convolution of unit-scale values in float32 against a float64 loop."""

FLOAT32_SUMS = (1e-4, 2e-4)
"""Sums over a batch of unit-scale products in float32 against float64."""

FLOAT64 = (1e-10, 1e-12)

ONNX_LOGITS = (1e-3, 1e-4)
"""Logits of a whole float32 network in another runtime."""

RANDOM_GRAPHS = (5e-4, 1e-6)
"""A random graph in another runtime: a number, relative to the largest of its sample; what is added to the largest."""
