"""Broken on purpose: it ends the program when it is imported."""

import sys

sys.exit("licence server not found")
