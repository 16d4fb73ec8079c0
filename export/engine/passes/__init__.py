"""Layers -> a program: fewer layers, orders, kernels, layouts, memory."""
