"""Repeat a run from a checkpoint, as it was or with something changed."""
