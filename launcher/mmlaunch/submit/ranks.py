"""`python -m mmlaunch.submit.ranks`: the name by which local job scripts, old ones too, start their ranks."""

from __future__ import annotations

import sys

from mmlaunch.schedulers.local.ranks import main

if __name__ == "__main__":
    sys.exit(main())
