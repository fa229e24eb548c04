"""Read answers out of responses, and tell right ones from wrong ones."""
