"""Trainers: anything that turns a model and data into a better model."""
