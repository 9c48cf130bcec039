"""Evals whose completions are programs, run in the sandbox."""
