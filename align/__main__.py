"""``python -m align``, and ``torchrun -m align``."""

import os
import sys

# ``python -m`` looks for modules in the working directory first: a user's random.py there would be taken for Python's.
# The `align` command does not look there, so neither does this, unless align itself is run from a checkout.
_HOME = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
if __name__ == "__main__" and not sys.flags.safe_path and os.path.realpath(sys.path[0]) == os.getcwd() != _HOME:
    del sys.path[0]

from align.cli import main  # noqa: E402  (the path is set first)

if __name__ == "__main__":
    main()
