"""The DeepSpeed engine: gradients, updates, frozen models, and the files of its checkpoints.

DeepSpeed looks around while it is imported. What it should see is set here, before a module of this package needs it.
"""

import logging
import os

import torch

from mmjobs.rank.imports import as_if_missing

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
with as_if_missing("mlflow"):  # its autotuner, which nobody uses here, would import it
    import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does the work, without a compiler and its minute
