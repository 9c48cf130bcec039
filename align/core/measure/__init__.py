"""Short probes of the untouched model that replace guesses: what ``align advise --measure`` runs."""
