"""`python -m fsd`."""

import sys

from fsd.cli.main import main

sys.exit(main())
