"""One training, from its set-up to its last checkpoint."""
