"""The engine: runs exported networks at the speed that the dropped multiply-adds promise."""
