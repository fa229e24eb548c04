"""Measure every agent's gradient on every backward pass."""
