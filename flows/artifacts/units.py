"""Numbers as people read them."""

from __future__ import annotations

NBSP = "\u00a0"
"""Joins the digits of a number, and a number with its unit: neither is torn at a line's end."""


def count_text(n: int) -> str:
    """Return a count with its thousands apart.

    Examples
    --------
    >>> count_text(1234567).replace(NBSP, " ")
    '1 234 567'
    """
    return f"{n:,}".replace(",", NBSP)


def bytes_text(n_bytes: float) -> str:
    """Return a size in the unit that suits it.

    Examples
    --------
    >>> [bytes_text(n).replace(NBSP, " ") for n in (0, 900, 3_400_000, 5 * 2**30)]
    ['0 B', '900 B', '3.4 MB', '5.4 GB']
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            break
        n_bytes /= 1000
    number = f"{n_bytes:.1f}" if unit != "B" and n_bytes < 100 else f"{n_bytes:.0f}"
    return f"{number}{NBSP}{unit}"


def seconds_text(seconds: float) -> str:
    """Return a duration, precise to about a hundredth of itself.

    Examples
    --------
    >>> [seconds_text(s).replace(NBSP, " ") for s in (0.012, 8.3, 59.9, 332, 7500, 200_000)]
    ['0.01 s', '8.3 s', '60 s', '5 min 32 s', '2 h 5 min', '2 d 7 h']
    """
    if seconds < 1:
        return f"{seconds:.2f}{NBSP}s"
    if seconds < 10:
        return f"{seconds:.1f}{NBSP}s"
    if seconds < 100:
        return f"{seconds:.0f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest}{NBSP}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}{NBSP}h {minutes}{NBSP}min"
    return f"{hours // 24}{NBSP}d {hours % 24}{NBSP}h"


def left_text(seconds: float) -> str:
    """Return a forecast, no more precise than a forecast is.

    Examples
    --------
    >>> [left_text(s).replace(NBSP, " ") for s in (3, 47, 100, 260, 6000, 90_000, 300_000)]
    ['about 10 s', 'about 50 s', 'about 2 min', 'about 4 min', 'about 1.7 h', 'about 25 h', \
'about 3 d']
    """
    if seconds < 55:
        return f"about {max(10, round(seconds, -1)):.0f}{NBSP}s"
    if seconds < 90 * 60:
        return f"about {max(1, seconds / 60):.0f}{NBSP}min"
    if seconds < 10 * 3600:
        return f"about {seconds / 3600:.1f}{NBSP}h"
    if seconds < 48 * 3600:
        return f"about {seconds / 3600:.0f}{NBSP}h"
    return f"about {seconds / 86400:.0f}{NBSP}d"


def rate_text(per_second: float, unit: str) -> str:
    """Return a rate over the time in which at least one of the unit is done.

    Examples
    --------
    >>> [rate_text(r, "tiles").replace(NBSP, " ") for r in (123.4, 12.34, 0.5, 0.05, 0.003)]
    ['123 tiles/s', '12.3 tiles/s', '0.5 tiles/s', '3.0 tiles/min', '10.8 tiles/h']
    """
    for rate, time in ((per_second, "s"), (per_second * 60, "min"), (per_second * 3600, "h")):
        if rate >= 0.1 and (rate >= 1 or time == "s"):
            break
    return f"{rate:.0f}{NBSP}{unit}/{time}" if rate >= 100 else f"{rate:.1f}{NBSP}{unit}/{time}"
