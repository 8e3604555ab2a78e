import os
import subprocess
import sys

import pytest

import embedding_studio
from embedding_studio import Context


def test_every_public_name_is_there_and_the_list_is_sorted():
    assert all(getattr(embedding_studio, name) is not None for name in embedding_studio.__all__)
    assert embedding_studio.__all__ == sorted(embedding_studio.__all__)


def test_every_public_name_is_listed_before_it_is_used():
    program = "import embedding_studio; print(sorted(dir(embedding_studio)))"

    listed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert listed.stdout.strip() == str(sorted([*embedding_studio.__all__, "__version__"]))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(embedding_studio, "manager")


def test_context_is_one_object():
    from embedding_studio import context

    assert isinstance(context, Context)
    assert embedding_studio.context is context


def test_importing_the_package_loads_nothing_heavy():
    program = (
        "import sys, embedding_studio\n"
        "print([name for name in ('torch', 'numpy', 'psycopg', 'fastapi', 'pydantic')"
        " if name in sys.modules])"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"


def test_the_default_adjuster_needs_no_torch():
    program = (
        "import sys, embedding_studio\n"
        "embedding_studio.PassiveAggressiveAdjuster(embedding_studio.SearchIndexInfo())\n"
        "print('torch' in sys.modules)"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "False"


@pytest.mark.parametrize(("given", "kept"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "4"}, "4")])
def test_a_command_has_numpy_multiply_in_one_thread_unless_more_are_asked_for(given, kept):
    program = (
        "import atexit, os, sys\n"
        "atexit.register(lambda: print('numpy' in sys.modules, os.environ['OPENBLAS_NUM_THREADS']))\n"
        "from embedding_studio.cli import app\n"
        "app(['--version'])"
    )
    others = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}

    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=others | given
    )

    assert ran.stdout.splitlines()[-1] == f"False {kept}"
