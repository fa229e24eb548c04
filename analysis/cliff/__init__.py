"""Did accuracy fall: by how much, since when, how sharply, and where."""
