"""How a program ends that a command of the command line runs: one JSON object, and the exit code of that command."""

from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
from collections.abc import Callable
from typing import Any

from mmlaunch.errors import BadInput, MachineError, MmlaunchError, UserError


def end(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], dict[str, Any]]) -> int:
    """Run a program: one JSON object on standard output, and the exit code that the command ends with."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # half a file is removed
    gc.set_threshold(50_000)  # libraries make objects by the hundred thousand, and all of them stay
    try:
        result = run(parser.parse_args())
    except (MmlaunchError, OSError) as error:
        result = {"error": str(error), "exit_code": exit_code(error)}
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
        gc.freeze()  # nor is anything searched for on the way out, which takes a second
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(json.dumps(result))
    code: int = result.get("exit_code", 0)
    return code


def exit_code(error: MmlaunchError | OSError) -> int:
    """What a command ends with. No job reads this input: what is wrong in it is a mistake of the user, who named it."""
    if isinstance(error, BadInput):
        return UserError.exit_code
    return error.exit_code if isinstance(error, MmlaunchError) else MachineError.exit_code
