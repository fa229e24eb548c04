"""What moved before a fall, what explains what, and what to change."""
