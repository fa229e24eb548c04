"""Turn what another trainer logged into a run store."""
