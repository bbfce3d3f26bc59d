"""`notify`: messages about the end of a run, to webhooks and commands."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from mmlaunch.recipe.environment import check_name, hide_secrets
from mmlaunch.recipe.scalars import Line, OneOrMore
from mmlaunch.recipe.section import Mistake, Section, mistake, rule

Event = Literal["end", "failure", "stuck", "stage"]


class Notify(Section):
    """A webhook or a command, and what it is used for. `notify: SLACK_WEBHOOK` is short for `notify: {url: ...}`."""

    SHORT: ClassVar[str] = "url"
    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "webhook": "url", "slack": "url", "hook": "url", "cmd": "command", "run": "command", "on": "when",
        "events": "when", "type": "body", "format": "body",
    }  # fmt: skip

    url: Annotated[Line | None, Field(examples=["SLACK_WEBHOOK"])] = None
    """The name of an environment variable: its value, the address of the webhook, comes from your shell and is never
    written down."""
    command: Annotated[Line | None, Field(examples=['mail -s "$MMLAUNCH_TITLE" me@lab.org'])] = None
    """Or a shell command: the text is on its standard input, the first line of it in MMLAUNCH_TITLE."""
    when: Annotated[list[Event], OneOrMore(), Field(min_length=1)] = ["end", "failure", "stuck"]
    """end: the run, task or pipeline is done; failure: it ended otherwise and is not restarted; stuck: it waits for a
    human, or stands still; stage: a stage of a pipeline is done."""
    body: Literal["slack", "json", "plain"] = "slack"
    """What a webhook gets: {"text": ...}, as Slack and Mattermost take it; all facts; or plain text."""

    @field_validator("url")
    @classmethod
    def _names_a_variable(cls, value: Any) -> Any:
        if isinstance(value, str) and "/" in value:
            right = "write the name of a variable: export SLACK_WEBHOOK=https://..., and url: SLACK_WEBHOOK"
            raise mistake("the address of a webhook is a secret, and recipes are written down", right)
        return value if value is None else check_name(value)

    @field_validator("command")
    @classmethod
    def _holds_no_secret(cls, value: str | None) -> str | None:
        if value is not None and hide_secrets(value) != value:
            right = 'write "$NAME" there and NAME in env: the value comes from your shell'
            raise mistake("something in this command looks like a secret, and recipes are written down", right)
        return value

    @rule
    def _one_way(self) -> Iterator[Mistake]:
        if (self.url is None) == (self.command is None):
            what = "neither a webhook nor a command" if self.url is None else "both a webhook and a command"
            yield (), None, mistake(what, "write url: SLACK_WEBHOOK, or command: ...; for both, make it a list")
