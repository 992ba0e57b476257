"""Text in, record out."""
