"""Checks of data that can be read: what is doubtful about it, and what it comes to. Loads no torch."""
