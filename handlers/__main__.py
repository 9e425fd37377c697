"""`python -m handlers …` is `workspaced …`."""

import sys

from handlers.cli import main

sys.exit(main())
