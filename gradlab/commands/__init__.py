"""The commands: the one folder of gradlab that looks up to the other packages."""
