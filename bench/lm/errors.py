"""The one exception that train_lm.py turns into a sentence and exit status 2."""


class InputError(Exception):
    """Something the user gave cannot be used; the message is one whole sentence about it."""
