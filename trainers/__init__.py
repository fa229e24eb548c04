"""From a configuration to a run directory: training of multi-agent workflows."""
