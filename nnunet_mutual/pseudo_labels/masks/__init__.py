"""Masks of other tools as pseudo labels: read in whatever layout, judged as those of our own networks are."""
