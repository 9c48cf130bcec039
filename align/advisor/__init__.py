"""The adviser: facts -> rules -> advice, and an estimate of the resources it takes.

Pure functions of what they are given: no clock, no network, no torch.
"""
