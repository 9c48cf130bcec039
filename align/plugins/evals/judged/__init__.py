"""Evals that a judge scores: MT-Bench, AlpacaEval 2 and Arena-Hard, in their published file formats."""
