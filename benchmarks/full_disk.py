"""A disk that fills, loses its room for files or becomes read-only under a daemon that trains, at 200 points.

    python benchmarks/full_disk.py [--points 200] [--seed 0] [--within 30]

Each time it is taken away for 1 to 5 s while a file is read, a checkpoint saved, `latest` swapped, a job recorded or
the status written, and given back. Exit code 1 where the daemon ended, a partial checkpoint was accepted, a row was
lost or trained twice, a file failed for it, or the training did not go on by itself.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.helpers_full_disk import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
