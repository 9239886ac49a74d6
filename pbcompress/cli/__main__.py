"""``python -m pbcompress.cli`` is the same as the command ``pbcompress``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[:1] == [str(Path.cwd())]:
        del sys.path[0]  # Python put it there; only what is named may come from this folder

    from pbcompress.cli.main import main

    sys.exit(main())
