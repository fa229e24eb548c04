"""Write and read the store of a run."""
