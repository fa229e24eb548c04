"""From run stores to the figures of the paper."""
