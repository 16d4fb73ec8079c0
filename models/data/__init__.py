"""Data sets by spec string, with train/validation/test splits and indices that travel with the samples."""

from .images import Batch, ImageData, Split
from .load import data_from_arrays, load_data

__all__ = ["Batch", "ImageData", "Split", "data_from_arrays", "load_data"]
