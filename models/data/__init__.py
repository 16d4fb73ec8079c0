"""Data sets by spec string, with train/validation/test splits and indices that travel with the samples."""

from .images import DATA_ARGUMENTS, Batch, ImageData, Split
from .load import data_from_arrays, load_data

__all__ = ["DATA_ARGUMENTS", "Batch", "ImageData", "Split", "data_from_arrays", "load_data"]
