"""`bertray nightly` as a Ray job.

ray job submit --working-dir . -- python jobs/nightly.py CONFIG.yaml [key=value ...]
"""

import sys

from bertray.cli import main

if __name__ == "__main__":
    sys.exit(main(["nightly", *sys.argv[1:]]))
