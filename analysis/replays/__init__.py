"""What repeated runs say about a suspect."""
