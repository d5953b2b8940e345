"""`bertray score` as a Ray job.

ray job submit --working-dir . -- python jobs/score.py CONFIG.yaml [key=value ...]
"""

import sys

from bertray.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
