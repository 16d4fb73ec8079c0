"""Which level of pruning each layer gets, so that a budget of time is kept at the least loss."""
