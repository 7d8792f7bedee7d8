"""`python -m promptgen_jax`: the same as the command `promptgen`."""

import sys

from promptgen_jax.commands import main

if __name__ == "__main__":
    sys.exit(main())
