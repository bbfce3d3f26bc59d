"""Push: an export goes to a repository of the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mmjobs.tasks.program import end
from mmlaunch.errors import MachineError


def push(folder: Path, repository: str, private: bool) -> str:
    """Send the files of an export; the address of the repository, which is made if it does not exist."""
    from huggingface_hub import HfApi  # it takes half a second

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=f"{folder.name}, by mmlaunch")
    except Exception as error:  # noqa: BLE001  whatever the hub's client and its network raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        right = "hf auth login, or export HF_TOKEN=..., and type the same again: the export stays"
        raise MachineError(f"{repository}: cannot be sent: {reason}; {right}") from None
    return str(address)


def main() -> int:
    """`python -m mmjobs.tasks.push FOLDER ORG/NAME`, which `mmlaunch export --push` calls."""
    parser = argparse.ArgumentParser(prog="mmlaunch export --push")
    parser.add_argument("folder", type=Path)
    parser.add_argument("repository")
    parser.add_argument("--public", action="store_true")
    return end(parser, _push)


def _push(given: argparse.Namespace) -> dict[str, Any]:
    return {"url": push(given.folder, given.repository, not given.public)}


if __name__ == "__main__":
    sys.exit(main())
