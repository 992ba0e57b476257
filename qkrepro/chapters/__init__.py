"""One module a notebook: its experiment, its figures, its claims with their rules."""
