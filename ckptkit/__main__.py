"""`python -m ckptkit` is the command `ckptkit`."""

import sys

from ckptkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
