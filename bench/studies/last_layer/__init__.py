"""The last layer solved instead of trained: the parts of bench.lm_head."""
