"""The documentation of the Python standard library and of installed packages, as a catalogue.

Every public module, class, function, method and property with a docstring is an object, named as
one would import it: ``json.dumps``, not ``json.encoder`` or a private module's name. Packages are
parsed, never imported. Only what the standard library holds in compiled form is asked at run time,
of the modules in ``COMPILED``.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from embedding_studio.catalogue.text import CatalogueText

PACKAGES = ("click", "httpx", "rich", "typer")
"""Read after the standard library, in this order: few and small, for the demo waits for each text."""

COMPILED = frozenset(
    {
        *("array", "binascii", "bisect", "builtins", "bz2", "cmath", "collections", "contextvars", "csv"),
        *("datetime", "decimal", "fcntl", "functools", "gc", "hashlib", "heapq", "hmac", "io", "itertools"),
        *("lzma", "math", "mmap", "operator", "os", "pickle", "pwd", "queue", "random", "resource", "select"),
        *("signal", "socket", "sqlite3", "struct", "sys", "termios", "threading", "time", "unicodedata"),
        *("weakref", "zlib", "zoneinfo"),
    }
)
"""Modules of the standard library that are harmless to import and compiled in part or in whole."""

LEFT_OUT = frozenset(
    {
        *("antigravity", "this", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data"),
        *("ntpath", "nturl2path", "tkinter", "turtle", "turtledemo", "test", "tests", "testing", "conftest"),
        "vendor",
    }
)
"""Modules, wherever they stand, that are tests, another platform's, windows, deprecated or jokes."""

PUBLIC_PLACES = {"posixpath": "os.path", "genericpath": "os.path", "builtins": ""}
"""Modules that are not imported by their name, and what stands before their contents instead."""

MAX_WORDS = 60
MAX_ARGUMENTS = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def read_python_documentation(limit: int | None = None) -> Iterator[CatalogueText]:
    """Yield what can be looked up in Python, about seven thousand objects: the standard library first.

    The order is that of the names, module by module, so that a limited list is always the same.
    """
    return islice(_everything(), limit)


def _everything() -> Iterator[CatalogueText]:
    library = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in LEFT_OUT:
            continue
        root = library / name
        entries = list(
            _from_source(name, root if root.is_dir() else root.with_suffix(".py"), package="python")
        )
        if name in COMPILED:
            entries += _from_running_module(name)
        yield from _by_name(entries)
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)  # finds a top-level name without running it
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            root = origin.parent if origin.name == "__init__.py" else origin
            yield from _by_name(_from_source(name, root, package=name))


def _by_name(entries: Iterable[CatalogueText]) -> list[CatalogueText]:
    """Return the entries that say something, sorted by id; of several with one id the first."""
    first: dict[str, CatalogueText] = {}
    for entry in entries:
        if entry.payload["summary"]:
            first.setdefault(entry.object_id, entry)
    return [first[object_id] for object_id in sorted(first)]


# From source -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Module:
    """A parsed module.

    Attributes:
        definitions: its public classes and functions; of several with one name the first.
        imported: name -> (module, name there), for what it takes from other modules.
        starred: modules from which it takes everything public.
        exported: ``__all__`` where that is a plain list, else None.
    """

    name: str
    path: str
    is_package: bool
    docstring: str | None
    definitions: dict[str, Definition]
    imported: dict[str, tuple[str, str]]
    starred: list[str]
    exported: list[str] | None


def _from_source(top: str, root: Path, *, package: str) -> Iterator[CatalogueText]:
    """Yield what the modules below one top-level name document."""
    modules = {module.name: module for module in _modules(top, root)}
    for module in modules.values():
        if _is_public(module.name) and module.docstring:
            name = PUBLIC_PLACES.get(module.name, module.name)
            yield _entry(
                name,
                module.docstring,
                signature=None,
                kind="module",
                module=name,
                package=package,
                source=f"{module.path}:1",
            )
    for (home, name), place in _places(modules).items():
        module = modules[home]
        for qualified, kind, node in _documented(f"{place}.{name}", module.definitions[name]):
            yield _entry(
                qualified,
                ast.get_docstring(node) or "",
                signature=None if kind == "property" else _signature(node),
                kind=kind,
                module=place,
                package=package,
                source=f"{module.path}:{node.lineno}",
            )


def _modules(top: str, root: Path) -> Iterator[_Module]:
    paths = [root] if root.suffix == ".py" else sorted(root.rglob("*.py"))
    for path in paths:
        parts = () if path == root else path.relative_to(root).with_suffix("").parts
        if LEFT_OUT.intersection(parts) or any(part.startswith("test_") for part in parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # how others escape their strings is theirs to mend
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # absent, a template, or for another Python
            continue
        is_package = path.name == "__init__.py"
        name = ".".join((top, *(parts[:-1] if is_package else parts)))
        shown = "/".join((root.name, *path.relative_to(root).parts)) if path != root else path.name
        yield _read_module(name, shown, tree, is_package=is_package)


def _read_module(name: str, path: str, tree: ast.Module, *, is_package: bool) -> _Module:
    module = _Module(name, path, is_package, ast.get_docstring(tree), {}, {}, [], _plain_all(tree))
    for node in _statements(tree.body):
        if isinstance(node, Definition):
            if not node.name.startswith("_"):
                module.definitions.setdefault(node.name, node)
        elif isinstance(node, ast.ImportFrom):
            package = name if is_package else name.rpartition(".")[0]
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join((*above, *filter(None, (node.module,))))
            for alias in node.names:
                if alias.name == "*":
                    module.starred.append(source)
                else:
                    module.imported[alias.asname or alias.name] = (source, alias.name)
    return module


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a body, also those under a condition."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
            yield from _statements(node.orelse)
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                yield from _statements(handler.body)


def _plain_all(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "__all__"
        ):
            try:
                return [str(name) for name in ast.literal_eval(node.value)]
            except (ValueError, TypeError):  # computed: taken as absent
                return None
    return None


def _places(modules: Mapping[str, _Module]) -> dict[tuple[str, str], str]:
    """Return (module, name) of each public definition -> the shortest module to import it from."""
    places: dict[tuple[str, str], str] = {}
    for module in modules.values():
        if not _is_public(module.name):
            continue
        for name in _public_names(module, modules):
            home = _home(module, name, modules, frozenset())
            if home is None or (home[1] != name):  # an alias would hide the name under which it is known
                continue
            place = PUBLIC_PLACES.get(module.name, module.name)
            if home not in places or (place.count("."), place) < (places[home].count("."), places[home]):
                places[home] = place
    return places


def _public_names(module: _Module, modules: Mapping[str, _Module]) -> Iterable[str]:
    """Return the names that a module offers: what it defines, and what a package takes from within."""
    names = dict.fromkeys((*module.definitions, *(module.exported or ())))
    if module.is_package and module.exported is None:
        names |= dict.fromkeys(name for name in module.imported if not name.startswith("_"))
    for source in module.starred:
        if source in modules and source != module.name:
            starred = modules[source]
            names |= dict.fromkeys(starred.exported or _public_names(starred, modules))
    return names


def _home(
    module: _Module, name: str, modules: Mapping[str, _Module], visited: frozenset[tuple[str, str]]
) -> tuple[str, str] | None:
    """Return (module, name) of the definition that a name in a module stands for; None if there is none."""
    if name in module.definitions:
        return module.name, name
    if (module.name, name) in visited:
        return None
    visited |= {(module.name, name)}
    sources = (
        [module.imported[name]] if name in module.imported else [(star, name) for star in module.starred]
    )
    for source, name_there in sources:
        if source in modules and (home := _home(modules[source], name_there, modules, visited)):
            return home
    return None


def _documented(qualified: str, node: Definition) -> Iterator[tuple[str, str, Definition]]:
    """Yield (qualified name, kind, node) of a class or function and of a class's members, if documented."""
    if ast.get_docstring(node):
        yield qualified, "class" if isinstance(node, ast.ClassDef) else "function", node
    if isinstance(node, ast.ClassDef):
        for member in _statements(node.body):
            if isinstance(member, Function) and not member.name.startswith("_") and ast.get_docstring(member):
                decorators = {
                    ast.unparse(decorator).rpartition(".")[2] for decorator in member.decorator_list
                }
                kind = "property" if decorators & {"property", "cached_property"} else "method"
                yield f"{qualified}.{member.name}", kind, member


def _signature(node: Definition) -> str | None:
    """Return a function's arguments with their defaults, without types: ``(obj, *, skipkeys=False)``."""
    if isinstance(node, ast.ClassDef):
        return None
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return f"({ast.unparse(node.args)})"


def _is_public(module: str) -> bool:
    return not any(part.startswith("_") for part in module.split("."))


# From running modules --------------------------------------------------------------------------------


def _from_running_module(name: str) -> Iterator[CatalogueText]:
    """Yield what is compiled in a module of the standard library; nothing where it is not built in."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return
    prefix = PUBLIC_PLACES.get(name, name)
    exported = getattr(module, "__all__", None)
    if not str(getattr(module, "__file__", "")).endswith(".py"):  # else its source has said it
        yield _running_entry(name, "module", name, module)
    for public_name in sorted(exported or vars(module)):
        value = getattr(module, public_name, None)
        at_home = exported is not None or getattr(value, "__module__", name) in {name, f"_{name}"}
        if public_name.startswith("_") or not at_home:
            continue
        qualified = f"{prefix}.{public_name}" if prefix else public_name
        for member_name, kind, member in _compiled(qualified, value):
            yield _running_entry(member_name, kind, name, member)


def _compiled(qualified: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (qualified name, kind, object) of a function, or of a type and its members, if documented."""
    if inspect.isroutine(value):
        if value.__doc__:
            yield qualified, "function", value
    elif isinstance(value, type):
        if value.__doc__:
            yield qualified, "class", value
        for name, member in sorted(vars(value).items()):
            if not name.startswith("_") and member.__doc__ and inspect.isroutine(member):
                yield f"{qualified}.{name}", "method", member
            elif not name.startswith("_") and member.__doc__ and inspect.isdatadescriptor(member):
                yield f"{qualified}.{name}", "property", member


def _running_entry(object_id: str, kind: str, module: str, value: Any) -> CatalogueText:
    signature = None
    if kind in {"function", "method"}:
        with suppress(TypeError, ValueError):  # not every compiled function tells it
            signature = str(inspect.signature(value))
    return _entry(
        object_id,
        inspect.getdoc(value) or "",
        signature=signature,
        kind=kind,
        module=module,
        package="python",
        source=None,
    )


# What is said of each --------------------------------------------------------------------------------


def _entry(object_id: str, docstring: str, *, signature: str | None, **payload: str | None) -> CatalogueText:
    prose = _prose(docstring)
    summary = _FIRST_SENTENCE.match(prose)
    return CatalogueText(
        object_id,
        f"{_spoken(object_id)}{_argument_words(signature)}\n{prose}",
        {
            "name": object_id,
            **payload,
            "signature": signature,
            "summary": summary[0] if summary else "",
        },
    )


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ARGUMENT = re.compile(r"[(,]\s*\*{0,2}([A-Za-z_]\w*)")
_ROLE = re.compile(r":[a-z:]+:`~?([^`<]*)(?:<[^`]*>)?`")
_SECTIONS = "Parameters|Returns?|Args|Arguments|Attributes|Examples?|Raises|Yields|Notes?|See Also|Usage"
_END_OF_PROSE = re.compile(rf"^\s*(>>>|\.\. \w|({_SECTIONS})\s*:?\s*$)", re.MULTILINE)
_FIRST_SENTENCE = re.compile(r".{1,200}?(?=\. |$)|.{200}")


def _spoken(name: str) -> str:
    """Return a name in words.

    >>> _spoken("collections.OrderedDict.move_to_end")
    'collections ordered dict move to end'
    """
    return " ".join(_WORD.findall(name)).lower()


def _argument_words(signature: str | None) -> str:
    names = [name for name in _ARGUMENT.findall(signature or "") if name not in {"self", "cls"}]
    return f" ({', '.join(names[:MAX_ARGUMENTS])})" if names else ""


def _prose(docstring: str) -> str:
    """Return the first paragraphs of a docstring, as many as ``MAX_WORDS`` hold, without markup."""
    prose = inspect.cleandoc(docstring)
    if end := _END_OF_PROSE.search(prose):
        prose = prose[: end.start()]
    words: list[str] = []
    for paragraph in _ROLE.sub(r"\1", prose).replace("`", "").strip().split("\n\n"):
        further = paragraph.split()
        if words and len(words) + len(further) > MAX_WORDS:
            break
        words += further
    return " ".join(words[:MAX_WORDS])
