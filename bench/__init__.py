"""Benchmarks and studies: each program is a file here, run as `python -m bench.<name>`."""
