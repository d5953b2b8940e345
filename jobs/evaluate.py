"""`bertray evaluate` as a Ray job.

ray job submit --working-dir . -- python jobs/evaluate.py CONFIG.yaml [key=value ...]
"""

import sys

from bertray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
