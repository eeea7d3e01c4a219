"""Command lines: typed flags in, one line of error out."""
