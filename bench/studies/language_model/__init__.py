"""The language model that bench.train_lm, bench.precision and bench.state_formats train."""
