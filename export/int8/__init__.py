"""An exported network in eight-bit integers: ranges, numbers, and the rewritten graph."""
