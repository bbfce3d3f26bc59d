"""`python -m mmlaunch.attempt`: the name by which job scripts, old ones too, call the restart policy."""

from __future__ import annotations

import sys

from mmlaunch.restart.attempt import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
