"""Data pruning: which samples an epoch visits, decided by the losses of the epochs before, and what that saves."""
