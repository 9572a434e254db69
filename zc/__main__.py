"""``python -m zc`` is the command ``zc``."""

import sys

from zc.cli import main

sys.exit(main())
