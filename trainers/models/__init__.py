"""Load, build and sample from language models."""
