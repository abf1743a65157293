"""``python -m fastsoftmax``: the command line."""

import sys

from fastsoftmax._cli import main

sys.exit(main())
