"""The noise scale of a real run: the language model of bench.train_lm, over its training."""
