"""Attach the probe to trainers that other people wrote."""
