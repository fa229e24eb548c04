"""What is measured in multi-agent RL training, and how it is kept."""
