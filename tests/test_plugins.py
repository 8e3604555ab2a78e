from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from embedding_studio import plugins
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import PluginError
from embedding_studio.feedback.selection import SessionSelection
from embedding_studio.plugins import Plugin, PluginDefaults, load_plugin

DEFAULTS = PluginDefaults(
    search_index_info=SearchIndexInfo(),
    vectors_adjuster=PassiveAggressiveAdjuster,
    embedder=lambda: None,
    session_filter=SessionSelection(),
)

DOT_SEARCH = """
from embedding_studio import MetricType, SearchIndexInfo

class DotSearch:
    def get_search_index_info(self):
        return SearchIndexInfo(metric_type=MetricType.DOT)
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_without_a_plugin_everything_is_as_the_settings_say():
    plugin = load_plugin(DEFAULTS)

    assert plugin.get_search_index_info() == SearchIndexInfo()
    assert isinstance(plugin.get_vectors_adjuster(), PassiveAggressiveAdjuster)
    assert plugin.get_embedder() is None
    assert plugin.get_session_filter() == SessionSelection()


def test_a_class_in_a_file_replaces_what_it_defines_and_keeps_the_rest(tmp_path):
    plugin = load_plugin(DEFAULTS, written(tmp_path, "dot.py", DOT_SEARCH))

    adjuster = plugin.get_vectors_adjuster()

    assert plugin.get_search_index_info().metric_type is MetricType.DOT
    assert isinstance(adjuster, PassiveAggressiveAdjuster)
    assert adjuster.search_index_info.metric_type is MetricType.DOT
    assert plugin.get_session_filter() == SessionSelection()


def test_a_folder_is_searched_for_its_one_plugin(tmp_path):
    written(tmp_path, "dot.py", DOT_SEARCH)
    written(tmp_path, "other.py", "from embedding_studio import MetricType\n\nclass Unrelated: ...\n")

    assert load_plugin(DEFAULTS, tmp_path).get_search_index_info().metric_type is MetricType.DOT


def test_a_subclass_of_plugin_works_the_same(tmp_path):
    text = DOT_SEARCH.replace("import ", "import Plugin, ").replace("DotSearch:", "DotSearch(Plugin):")

    plugin = load_plugin(DEFAULTS, written(tmp_path, "dot.py", text))

    assert isinstance(plugin, Plugin)
    assert plugin.get_search_index_info().metric_type is MetricType.DOT


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n", "holds no plugin: define a class with one of get_search_index_info"),
        ("def broken(:\n", "could not be imported: SyntaxError"),
        (DOT_SEARCH + DOT_SEARCH.replace("DotSearch", "Second"), "there are several plugins"),
        (
            DOT_SEARCH + "    def __init__(self):\n        raise RuntimeError('no key')\n",
            "could not be made: no key",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_told_in_a_sentence(tmp_path, text, told):
    path = written(tmp_path, "plugin.py", text)

    with pytest.raises(PluginError) as refused:
        load_plugin(DEFAULTS, path)

    assert told in str(refused.value)


def test_a_path_that_does_not_exist_is_told_in_a_sentence(tmp_path):
    with pytest.raises(PluginError, match=r"absent\.py does not exist"):
        load_plugin(DEFAULTS, tmp_path / "absent.py")


def test_an_installed_plugin_is_found_by_its_entry_point(tmp_path, monkeypatch):
    written(tmp_path, "installed_dot_search.py", DOT_SEARCH)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("dot", "installed_dot_search:DotSearch", plugins.ENTRY_POINT_GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == entry.group else [])

    assert load_plugin(DEFAULTS).get_search_index_info().metric_type is MetricType.DOT


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        (
            "get_embedder",
            "'minilm'",
            "returned 'minilm', a str; it is to return None, or an object with name",
        ),
        ("get_search_index_info", "None", "returned None, a NoneType; it is to return a SearchIndexInfo"),
        ("get_vectors_adjuster", "5", "it is to return an object with adjust_vectors"),
        ("get_session_filter", "True", "it is to return a function of a session"),
    ],
)
def test_what_a_plugin_may_not_return_is_told_in_a_sentence(tmp_path, name, given, told):
    text = f"class Mine:\n    def {name}(self):\n        return {given}\n"
    plugin = load_plugin(DEFAULTS, written(tmp_path, "mine.py", text))

    with pytest.raises(PluginError) as refused:
        getattr(plugin, name)()

    assert f"Mine.{name} of the plugin returned" in str(refused.value)
    assert told in str(refused.value)
