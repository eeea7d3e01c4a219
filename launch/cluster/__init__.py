"""Starting a job under a scheduler."""
