"""The parts of bench.gpu_check: each script proves or times one thing on a GPU."""
