"""Streaming statistics over the training set: block frequencies for FFP, weight importance for FWP."""
