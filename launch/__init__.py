"""What people run: `python -m launch.train` and its companions."""
