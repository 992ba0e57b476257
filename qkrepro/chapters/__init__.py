"""One module per chapter of the book: its experiment, its figures, its claims with their rules."""
