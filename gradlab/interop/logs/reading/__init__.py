"""Read logs of any kind as tables of metrics by step."""
