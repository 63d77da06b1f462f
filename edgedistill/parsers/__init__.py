"""Outputs of other tools, as values."""
