"""Keeps the index true to the disk: sources of hints -> durable dirty set -> reconcile, and sweeps."""
