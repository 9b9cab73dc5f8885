"""From "package.module:Class" to a driver. Whatever is wrong comes as one line that says how to mend it."""

import importlib
import traceback
from typing import Any, TypeVar

from partitions.sdk.context import DriverContext

DriverT = TypeVar("DriverT")


class DriverLoadError(Exception):
    """The class cannot be had, or cannot be made. One line, with a remedy; trying again does not help."""


def load_class(spec: str, bases: tuple[type[DriverT], ...]) -> type[DriverT]:
    """The class that `spec` names, which must be a subclass of one of `bases`. DriverLoadError."""
    module_name, _, class_name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (error.name == module_name or module_name.startswith(error.name + ".")):
            raise DriverLoadError(
                f"{spec}: no module {error.name}: add its folder to PYTHONPATH, as an absolute path"
            ) from error
        raise DriverLoadError(f"{spec}: it needs the module {error.name}: install that") from error
    except BaseException as error:  # its own code ran
        raise DriverLoadError(
            f"{spec}: its import failed{_where(error)}: {_what(error)}: mend that"
        ) from error
    found = getattr(module, class_name, None)
    wanted = " or ".join(base.__name__ for base in bases)
    if found is None:
        raise DriverLoadError(f"{spec}: the module has no {class_name}: name a class of it")
    if not isinstance(found, type) or not issubclass(found, bases):
        raise DriverLoadError(f"{spec}: not a {wanted}: derive it from partitions.sdk.{bases[0].__name__}")
    return found


def load_driver(spec: str, context: DriverContext, bases: tuple[type[Any], ...]) -> Any:
    """The driver itself. DriverLoadError: also whatever the class raises when it is made."""
    made = load_class(spec, bases)
    try:
        return made(context)
    except Exception as error:
        raise DriverLoadError(
            f"{spec}: it cannot be made{_where(error)}: {_what(error)}: mend that, or its args"
        ) from error


def _what(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _where(error: BaseException) -> str:
    """The innermost line of code, as " at FILE:LINE"."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
