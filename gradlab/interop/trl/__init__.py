"""Attach the probe to TRL's trainer."""
