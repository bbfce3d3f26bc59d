"""Counts the rows of the sources of a task, which is about to be split into shards. Needs no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from mmjobs.inference.inputs import measured, sources_within
from mmjobs.tasks.program import exit_code
from mmlaunch.errors import MmlaunchError
from mmlaunch.recipe.data import Source


def main() -> int:
    """`python -m mmjobs.tasks.count_rows JSON`: prints what is known of each source."""
    try:
        sources = [Source.model_validate(one) for one in json.loads(sys.argv[1])]
        inputs = [asdict(one) for one in measured(sources)]
        print(json.dumps({"inputs": inputs, "within": sources_within(sources)}))
    except (MmlaunchError, OSError) as error:
        code = exit_code(error)
        print(json.dumps({"error": f"data.input: {error}", "exit_code": code}))
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
