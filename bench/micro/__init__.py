"""The microbenchmarks' parts: cases, timings in turns, memory, machine, results file."""
