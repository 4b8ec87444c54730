"""The parts of train_lm.py: text, model, recipe, training run, checkpoint and report."""
