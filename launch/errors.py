"""What can go wrong at launch that the person who started it can put right?

The command line prints these without a traceback; everything else is a bug and keeps its traceback.
"""


class ModelUnavailable(Exception):
    """The model that was asked for cannot be had; the text says what would help."""
