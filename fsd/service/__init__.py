"""Plumbing shared by all processes: configuration, logs, metrics, supervision. Knows no parts."""
