"""``python -m mqhooks``: the same as the ``mqhooks`` command."""

import sys

from mqhooks.app.command import main

if __name__ == "__main__":
    sys.exit(main())
