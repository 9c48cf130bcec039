"""Checks of rows that can be read: duplicates, leaks, personal data, odd answers, lengths. Loads no torch."""
