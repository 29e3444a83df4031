"""`python -m longtail` is the command `longtail`."""

import sys

from longtail.cli import main

sys.exit(main())
