"""What is computed from captured gradients."""
