"""Sample with an engine that holds a copy of the weights, and prove that the copy is right."""
