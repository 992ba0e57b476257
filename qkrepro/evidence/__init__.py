"""What chapters share: claims and verdicts, saved numbers, the style of figures, runs in pairs."""
