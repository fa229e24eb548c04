"""Train one run in several processes that share its rows."""
