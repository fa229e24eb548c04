"""Match the metric names of other trainers with fields of our records."""
