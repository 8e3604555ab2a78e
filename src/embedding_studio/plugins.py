"""What a user may replace: the index, the adjuster, the embedder, the session filter.

A plugin is any class with one or more of the four ``get_`` methods below; what it leaves out is as
``Plugin`` has it. It is found by the entry point group ``embedding_studio.plugins``, or in
``PLUGINS_PATH``, and is loaded once.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from inspect import getattr_static
from pathlib import Path
from typing import ClassVar

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.sessions import Session
from embedding_studio.embedders import Embedder
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.errors import PluginError

ENTRY_POINT_GROUP = "embedding_studio.plugins"


@dataclass(frozen=True, slots=True)
class PluginDefaults:
    """What the settings say where a plugin says nothing."""

    search_index_info: SearchIndexInfo
    vectors_adjuster: Callable[[SearchIndexInfo], VectorsAdjuster]
    embedder: Callable[[], Embedder | None]
    session_filter: Callable[[Session], bool]


class Plugin:
    """The plugin that is used when there is none; inheriting from it is allowed, not needed.

    ``is_product_search`` and ``is_document_search`` are flags for a plugin's own use.
    """

    defaults: ClassVar[PluginDefaults]
    is_product_search = False
    is_document_search = False

    def get_search_index_info(self) -> SearchIndexInfo:
        """Return metric and aggregation of collections that are created from now on."""
        return self.defaults.search_index_info

    def get_vectors_adjuster(self) -> VectorsAdjuster:
        """Return what moves vectors in collections of this plugin's metric and aggregation."""
        return self.defaults.vectors_adjuster(self.get_search_index_info())

    def get_embedder(self) -> Embedder | None:
        """Return what embeds texts; None where callers bring vectors."""
        return self.defaults.embedder()

    def get_session_filter(self) -> Callable[[Session], bool]:
        """Return which sessions are learnt from: a callable from session to bool."""
        return self.defaults.session_filter


_METHODS = tuple(name for name in vars(Plugin) if name.startswith("get_"))

_WANTED: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "get_search_index_info": ("a SearchIndexInfo", lambda given: isinstance(given, SearchIndexInfo)),
    "get_vectors_adjuster": ("an object with adjust_vectors", lambda given: _has(given, "adjust_vectors")),
    "get_embedder": (
        "None, or an object with name, dimensions, embed and split",
        lambda given: given is None or _has(given, "name", "dimensions", "embed", "split"),
    ),
    "get_session_filter": ("a function of a session", callable),
}
"""What each method is to return."""


def load_plugin(defaults: PluginDefaults, path: Path | None = None, given: type | None = None) -> Plugin:
    """Return the one plugin there is: ``given``, else in ``path``, else of an entry point, else ``Plugin``.

    Raises:
        PluginError: there is more than one, or it cannot be imported or made.
    """
    if given is not None:
        return _made(given, defaults)
    found = _classes_in(path) if path is not None else _classes_of_entry_points()
    if path is not None and not found:
        raise PluginError(
            f"PLUGINS_PATH={path} holds no plugin: define a class with one of {', '.join(_METHODS)}."
        )
    if len(found) > 1:
        names = ", ".join(f"{each.__module__}.{each.__qualname__}" for each in found)
        raise PluginError(f"there are several plugins ({names}); keep one, or choose it with PLUGINS_PATH.")
    return _made(found[0] if found else Plugin, defaults)


def _made(plugin_class: type, defaults: PluginDefaults) -> Plugin:
    """Return a plugin of a class, with the methods of ``Plugin`` where it has none of its own."""
    lineage = (plugin_class,) if issubclass(plugin_class, Plugin) else (plugin_class, Plugin)
    checked = {name: _checked(name, _own(name, lineage)) for name in _METHODS}
    completed = type(plugin_class.__name__, lineage, {"defaults": defaults, **checked})
    try:
        plugin: Plugin = completed()
    except Exception as error:
        raise PluginError(f"the plugin {plugin_class.__qualname__} could not be made: {error}") from error
    return plugin


def _own(name: str, lineage: tuple[type, ...]) -> Callable[[Plugin], object]:
    own: Callable[[Plugin], object] = next(getattr(each, name) for each in lineage if hasattr(each, name))
    return own


def _checked(name: str, own: Callable[[Plugin], object]) -> Callable[[Plugin], object]:
    """Return a method that refuses what the plugin's own may not return."""
    wanted, is_right = _WANTED[name]

    def method(plugin: Plugin) -> object:
        given = own(plugin)
        if not is_right(given):
            raise PluginError(
                f"{type(plugin).__name__}.{name} of the plugin returned {repr(given)[:80]}, a "
                f"{type(given).__name__}; it is to return {wanted}"
            )
        return given

    return method


def _has(given: object, *names: str) -> bool:
    """Return whether an object has attributes, without asking for their values, which may be costly."""
    absent = object()
    if hasattr(type(given), "__getattr__"):  # it stands before another object
        return True
    return all(getattr_static(given, name, absent) is not absent for name in names)


def _classes_in(path: Path) -> list[type]:
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    if not path.exists():
        raise PluginError(f"PLUGINS_PATH={path} does not exist; give a Python file or a folder of them.")
    return [plugin for file in files for plugin in _plugin_classes(file)]


def _plugin_classes(file: Path) -> list[type]:
    name = f"embedding_studio_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"{file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PluginError(f"{file} could not be imported: {type(error).__name__}: {error}") from error
    return [
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and each.__module__ == name
        and any(hasattr(each, method) for method in _METHODS)
    ]


def _classes_of_entry_points() -> list[type]:
    found = []
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            found.append(entry.load())
        except Exception as error:
            raise PluginError(
                f"the plugin {entry.name} ({entry.value}) could not be loaded: {error}"
            ) from error
    return found
