"""The mathematics of the book as pure functions on tensors."""
