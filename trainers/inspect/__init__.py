"""Look at what a run did: its episodes, and whose gradient is whose."""
