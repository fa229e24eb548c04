"""Measure where a policy is trained on several devices."""
