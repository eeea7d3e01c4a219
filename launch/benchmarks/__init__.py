"""The benchmarks of `python -m launch.bench`, a module each."""
