"""Run a command: `python -m gradlab train ...`."""

import sys

from gradlab.commands.main import main

sys.exit(main())
