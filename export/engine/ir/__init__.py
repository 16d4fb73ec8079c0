"""What the stages hand on: layers, tensors as they lie in memory, operations in numbers."""
