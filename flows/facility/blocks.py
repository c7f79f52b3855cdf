"""Blocks that notify people, made of environment variables: no secret stands in a file."""

from __future__ import annotations

import os
from uuid import UUID

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.fields import SecretDict
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from pydantic import SecretStr, ValidationError

from flows.facility.mail import SmtpMail
from patchworks.errors import InputError

WEBHOOK_URL = "PATCHWORKS_WEBHOOK_URL"
"""Environment variable: URL that gets a JSON object with `text`, as Slack, Mattermost, Teams
workflows and others take it."""

MAIL_URL = "PATCHWORKS_MAIL_URL"
"""Environment variable: mailtos://USER:PASSWORD@SERVER?from=ADDRESS&to=ADDRESS."""

NAMES = {WEBHOOK_URL: "patchworks-webhook", MAIL_URL: "patchworks-mail"}
"""Name of the block that is made of each."""


def ensure_blocks() -> dict[str, UUID]:
    """Make or renew a block of each variable that is set; return their ids by variable.

    A block that an earlier call made stays where its variable is not set now.

    Raises
    ------
    InputError
        If a URL is none; it does not say the URL, which may hold a password.
    """
    found: dict[str, UUID] = {}
    for variable, name in NAMES.items():
        url = os.environ.get(variable)
        if url:
            found[variable] = UUID(str(_block(variable, url).save(name, overwrite=True)))
    return found


def _block(variable: str, url: str) -> NotificationBlock:
    if variable == WEBHOOK_URL:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{variable}: expected a URL that begins with https:// or http://")
        return CustomWebhookNotificationBlock(
            name="patchworks",
            url="{{url}}",  # of the secrets, which the UI does not show
            json_data={"text": "{{subject}}\n{{body}}"},
            headers=None,
            cookies=None,
            secrets=SecretDict({"url": url}),
        )
    try:
        return SmtpMail(url=SecretStr(url))
    except ValidationError as error:
        raise InputError(f"{variable}: {error.errors(include_input=False)[0]['msg']}") from None
