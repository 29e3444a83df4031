"""`python -m train` by any launcher, which also writes down the sample ids of each step: IDS ARGUMENTS…"""

import runpy
import sys
from pathlib import Path

from tests.helpers.processes import record_sample_ids

if __name__ == "__main__":
    record_sample_ids(Path(sys.argv.pop(1)))
    runpy.run_module("train", run_name="__main__")
