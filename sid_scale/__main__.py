"""`python -m sid_scale COMMAND`, for launchers that start modules: see cli.py."""

import sys

from sid_scale.cli import main

sys.exit(main())
