"""What to do: facts -> rules -> advice, and what it would take. Imports schemas only; no torch, no clock, no network."""
