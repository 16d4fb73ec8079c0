"""What everybody computes with: the masked convolution and its backends, geometry, mask bits, multiply-adds, register tiles, threads."""
