"""``python -m pbcompress.cli`` is the same as the command ``pbcompress``."""

import sys

from pbcompress.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
