"""Read norms, cosines and series out of what a store holds."""
