"""Data sets by spec string, with train/validation/test splits and indices that travel with the samples."""
