"""`push_to`: where on the Hugging Face hub the trained model goes."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from mmlaunch.recipe.scalars import HUB_NAME
from mmlaunch.recipe.section import Section, mistake


def _repository(value: str) -> str:
    if HUB_NAME.fullmatch(value) is None:
        raise mistake(f"{value!r} is no name of a repository", "write ORG/NAME")
    return value


class PushTo(Section):
    """The model goes to a repository of the Hugging Face hub, with the key in HF_TOKEN or that of `hf auth login`."""

    SHORT: ClassVar[str] = "repository"
    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "name": "repository", "repo": "repository", "repo_id": "repository", "hub_model_id": "repository",
        "merge": "merge_lora",
    }  # fmt: skip

    repository: Annotated[str, AfterValidator(_repository), Field(examples=["my-lab/dpo-llama3-8b"])]
    """Its name; one that does not exist is made."""
    at_end: bool = True
    """Send it when the run is done, as well as when `mmlaunch export RUN --push` says so."""
    public: bool = False
    """Whether everybody may read a new repository."""
    merge_lora: bool = False
    """Merge adapters into the weights, instead of an adapter beside its base."""
