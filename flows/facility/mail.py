"""A block for e-mail over SMTP, which Prefect itself has none of.

The server finds it through the entry point `prefect.collections`, since notifications are sent by
the server: patchworks has to be installed in the environment that the server runs in.
"""

from __future__ import annotations

from prefect.blocks.notifications import AppriseNotificationBlock
from pydantic import Field, SecretStr, field_validator

SCHEMES = ("mailto://", "mailtos://")


class SmtpMail(AppriseNotificationBlock):
    """Send notifications as e-mail through an SMTP server."""

    _block_type_name = "SMTP Mail"
    _block_type_slug = "smtp-mail"

    url: SecretStr = Field(
        default=...,
        title="Mail URL",
        description="mailtos://USER:PASSWORD@SERVER?from=ADDRESS&to=ADDRESS,ADDRESS; mailto:// "
        "without encryption.",
    )

    @field_validator("url")
    @classmethod
    def _is_mail(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(SCHEMES):
            raise ValueError(f"expected a URL that begins with {' or '.join(SCHEMES)}")
        return url
