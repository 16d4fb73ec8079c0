"""Shared by tests: naive reference loops, tolerances, small networks."""
