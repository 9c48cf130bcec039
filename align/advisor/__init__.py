"""What to do: facts -> rules -> advice, and what it would take.

Pure functions of what they are given: no clock, no network, no torch.
"""
