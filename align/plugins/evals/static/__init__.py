"""Static benchmarks: published questions with known answers, carried by lm-eval. docs/evals_static.md has the table."""
