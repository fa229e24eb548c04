"""What is recorded and told while a run trains."""
