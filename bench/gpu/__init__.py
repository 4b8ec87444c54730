"""The parts of gpu_check.py: each script proves or times one thing on a GPU and writes its rows."""
