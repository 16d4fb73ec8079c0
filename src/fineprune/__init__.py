"""fineprune makes a trained convolutional network several times faster on the CPU that will run it, and shows what that cost."""

__version__ = "0.1.0"
