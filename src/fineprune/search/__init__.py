"""Reaching a target: how many milliseconds, at most how many points; which layers give that up, and by how much."""
