"""What a factory of segmenters takes: its signature and the words of its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NOTHING = inspect.Parameter.empty

HEADING = re.compile(r"^(\w[\w ]*)\n-{3,}[ \t]*$", re.MULTILINE)
ENTRY = re.compile(r"^(\*{0,2}\w[\w, *]*?)[ \t]*(?::[ \t]*(.*))?$")


@dataclass(frozen=True)
class FactoryParameter:
    """A keyword of a factory.

    Parameters
    ----------
    name : str
        The keyword.
    annotation : Any
        Its type; `inspect.Parameter.empty` where it has none, or one that cannot be evaluated.
    default : Any
        Its default; `inspect.Parameter.empty` where it has none.
    description : str
        One paragraph, or nothing.
    """

    name: str
    annotation: Any
    default: Any
    description: str

    @property
    def is_required(self) -> bool:
        """Whether it has to be given."""
        return self.default is NOTHING


@dataclass(frozen=True)
class FactoryDescription:
    """What a factory makes, and of what.

    Parameters
    ----------
    summary : str
        The first paragraph of its docstring.
    parameters : tuple of FactoryParameter
        Its keywords, in order.
    takes_others : bool
        Whether it takes keywords that it does not name.
    """

    summary: str
    parameters: tuple[FactoryParameter, ...]
    takes_others: bool


def describe_factory(factory: Callable[..., Any]) -> FactoryDescription:
    """Return what a factory takes.

    Parameters
    ----------
    factory : callable
        With parameters that can be given as keywords; its docstring may describe them in the
        manner of numpydoc.

    Raises
    ------
    TypeError, ValueError
        If it has no signature, or takes something that has no name.

    Examples
    --------
    >>> from patchworks.segmenters import threshold
    >>> described = describe_factory(threshold)
    >>> [parameter.name for parameter in described.parameters][:3]
    ['value', 'sigma', 'connectivity']
    >>> described.parameters[2].default
    1
    """
    docstring = inspect.getdoc(factory) or ""
    texts = parameter_texts(docstring)
    parameters, takes_others = [], False
    for parameter in _signature(factory).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_others = True
        elif parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is NOTHING:
            raise TypeError(f"its parameter {parameter.name!r} cannot be given by name")
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            annotation = _evaluated(parameter.annotation, factory)
            text = texts.get(parameter.name, "")
            parameters.append(FactoryParameter(parameter.name, annotation, parameter.default, text))
    summary = " ".join(docstring.split("\n\n", maxsplit=1)[0].split())
    return FactoryDescription(summary, tuple(parameters), takes_others)


def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(factory, eval_str=True)
    except (TypeError, ValueError):
        raise
    except Exception:  # noqa: BLE001 - a name that only a type checker imports, or worse
        return inspect.signature(factory)


def _evaluated(annotation: Any, factory: Callable[..., Any]) -> Any:
    """Return an annotation that may be text, each on its own: one that fails hides no others."""
    if not isinstance(annotation, str):
        return annotation
    plain = inspect.unwrap(factory)
    function = plain.__init__ if inspect.isclass(plain) else plain
    try:
        return eval(annotation, getattr(function, "__globals__", {}))
    except Exception:  # noqa: BLE001 - the text is the package's, and only describes
        return NOTHING


def parameter_texts(docstring: str) -> dict[str, str]:
    """Return what the section "Parameters" of a numpydoc docstring says of each, in one line.

    Examples
    --------
    >>> parameter_texts('''Do.
    ...
    ... Parameters
    ... ----------
    ... low, high : float
    ...     From here
    ...     to there.
    ... n
    ...     How many.
    ... ''')
    {'low': 'From here to there.', 'high': 'From here to there.', 'n': 'How many.'}
    """
    headings = list(HEADING.finditer(docstring))
    starts = [heading.start() for heading in headings[1:]] + [len(docstring)]
    found: dict[str, str] = {}
    for heading, end in zip(headings, starts if headings else [], strict=True):
        if heading[1] in ("Parameters", "Other Parameters"):
            found |= _entries(docstring[heading.end() : end])
    return found


def _entries(section: str) -> dict[str, str]:
    lines: dict[str, list[str]] = {}
    names: list[str] = []
    for line in section.splitlines():
        entry = ENTRY.match(line)
        if entry:
            names = [name.strip().lstrip("*") for name in entry[1].split(",")]
            lines |= {name: [] for name in names}
        elif line.strip():
            for name in names:
                lines[name].append(line.strip())
    return {name: " ".join(text).replace("``", "") for name, text in lines.items()}
