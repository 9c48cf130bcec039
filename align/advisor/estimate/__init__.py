"""What training takes: memory per device and phase, which way of holding a model fits, work, time, cost. No torch."""
