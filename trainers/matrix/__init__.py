"""Train every cell of an experiment matrix, each an ordinary run, and say how far it is."""
