"""Catch each agent's share of a gradient while the backward runs."""
