"""Model names, which are folders or repositories of the Hugging Face hub: errors say the name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers.initialization import no_init_weights
from transformers.utils import logging

from mmjobs.data.readers.hub import HubUnreachable
from mmlaunch.errors import BadInput
from mmlaunch.recipe.scalars import HUB_NAME


def on_disk(field: str, name: str) -> Path:
    """The folder of a model; one of the hub is loaded first. The hub's client bounds how long it waits."""
    if Path(name).is_dir() or not HUB_NAME.fullmatch(name):
        return Path(name)
    print(f"{field}: asking the hub for {name}", flush=True)
    with opening(field, name):
        return Path(snapshot_download(name))


def _unreachable(error: BaseException | None) -> str:
    """The network's own words, if the network is behind this error; a hub that says no is another matter."""
    while error is not None:
        kind = type(error).__name__
        if isinstance(error, (ConnectionError, TimeoutError)) or re.search(r"Connect|Timeout|ProxyError|Network", kind):
            return str(error).strip().partition("\n")[0] or kind
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def opening(field: str, name: str) -> Iterator[None]:
    """In this context an error of transformers about a model becomes one sentence about the recipe."""
    loud, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # a CLIP has a text tower too: its report of 100 unused weights is of no use
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if unreachable := _unreachable(error):
            raise HubUnreachable(f"{field}: {name}: the hub does not answer ({unreachable})") from error
        first = str(error).strip().partition("\n")[0]
        if not Path(name).is_dir():
            first = f"no such folder, and the hub does not give it: {first}"
        raise BadInput(f"{field}: {name}: {first}") from error
    finally:
        logging.set_verbosity(loud)
        if bars:
            logging.enable_progress_bar()


def weights(kind: Any, name: str, config: Any, empty: bool, dtype: torch.dtype, **options: Any) -> Any:
    """A model with all of its weights from there: a missing one would stay random, and nobody would notice.

    An `empty` one has memory for them only: they come from elsewhere.
    """
    if empty:
        with no_init_weights():
            make = getattr(kind, "from_config" if hasattr(kind, "from_config") else "_from_config")
            return make(config, dtype=dtype, **options)
    options = {**options, "config": config, "dtype": dtype}
    with torch.random.fork_rng(devices=()):  # whether it draws depends on how the weights are divided
        network, report = kind.from_pretrained(name, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ValueError(f"its weights lack {some}; it is not a {kind.__name__.removeprefix('Auto')}")
    return network
