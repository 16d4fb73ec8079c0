"""The command `fineprune`."""
