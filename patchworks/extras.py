"""Packages that not everybody needs, imported when they are."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from patchworks.errors import MissingExtraError


def check_extra(module: str, extra: str, what: str) -> None:
    """See to it that an optional package is installed, without importing it; as `import_extra`.

    Raises
    ------
    MissingExtraError
        If it is not installed, with the line that installs it.
    """
    if find_spec(module) is None:
        raise MissingExtraError(_missing(what, module, extra))


def import_extra(module: str, extra: str, what: str) -> ModuleType:
    """Return a module of an optional package.

    Parameters
    ----------
    module : str
        Its name, such as ``"torch"``.
    extra : str
        The extra of patchworks that installs it.
    what : str
        What needs it, such as ``"torch_fn"``.

    Raises
    ------
    MissingExtraError
        If it is not installed, with the line that installs it; or if it is, and cannot be
        imported, with why.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise MissingExtraError(_broken(what, module, error)) from error
        raise MissingExtraError(_missing(what, package, extra)) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtraError(_broken(what, module, error)) from error


def _missing(what: str, package: str, extra: str) -> str:
    return (
        f"{what} needs the package {package}, which is not installed: "
        f"pip install 'patchworks[{extra}]'"
    )


def _broken(what: str, module: str, error: BaseException) -> str:
    return f"{what} needs {module}, which is installed but cannot be imported: {error}"
