"""What is trained on: problems with stable ids and a judge."""
