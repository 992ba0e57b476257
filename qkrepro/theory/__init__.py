"""Mathematics on tensors."""
