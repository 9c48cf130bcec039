"""Estimates of training: memory per device and phase, the memory plan that fits, FLOPs, time, cost. No torch."""
