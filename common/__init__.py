"""Leaf modules that every package may import and that import none of ours: errors, safe file writing, progress."""
