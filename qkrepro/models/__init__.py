"""Query and key weights of any model."""
