"""Weights refitted under masks, so that layers answer as they did without: no labels, no gradient steps."""
