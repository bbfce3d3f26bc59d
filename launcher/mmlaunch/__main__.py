"""`python -m mmlaunch` is the same command as `mmlaunch`."""

from mmlaunch.cli import main

if __name__ == "__main__":
    main()
