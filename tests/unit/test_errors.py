"""What errors advise: names that are near, and the command that installs an extra here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tokbench import errors
from tokbench.errors import UnknownName, install_command


def test_a_name_that_is_near_is_named_once() -> None:
    found = UnknownName("tokenizer", "jpg", ["jpeg", "jpeg", "webp"])
    assert str(found) == "unknown tokenizer 'jpg'; did you mean jpeg? See `tokbench list tokenizers`."


def test_only_what_can_be_listed_refers_to_the_list() -> None:
    assert str(UnknownName("class of a.py", "Min", ["Mine"])) == "unknown class of a.py 'Min'; did you mean Mine?"
    assert (
        str(UnknownName("class of a.py", "X", ["Mine", "Other"])) == "unknown class of a.py 'X'; there is Mine, Other."
    )


class _Installed:
    def __init__(self, direct_url: str | None) -> None:
        self.direct_url = direct_url

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.direct_url


def _clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "a clone"
    (root / ".venv").mkdir(parents=True)
    (root / "uv.lock").touch()
    about = json.dumps({"url": root.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.setattr(errors, "distribution", lambda name: _Installed(about))
    return root


@pytest.mark.parametrize("direct_url", [None, "no json", '{"url": "file:///x", "dir_info": {}}'])
def test_an_installed_package_gets_its_extra_by_pip(direct_url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "distribution", lambda name: _Installed(direct_url))
    assert install_command("audio") == 'pip install "tokbench[audio]"'


def test_the_environment_of_a_clone_that_uv_made_has_no_pip_and_gets_it_by_uv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _clone(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "prefix", str(root / ".venv"))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/uv")
    assert install_command("audio") == "uv sync --inexact --extra audio"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (root / ".uv" / "bin").mkdir(parents=True)
    (root / ".uv" / "bin" / "uv").touch()
    assert install_command("audio") == ".uv/bin/uv sync --inexact --extra audio"


def test_another_environment_of_a_clone_gets_it_by_its_own_installer_and_no_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _clone(tmp_path, monkeypatch)
    monkeypatch.setattr(errors, "find_spec", lambda name: object())
    assert install_command("jxl") == 'pip install -e ".[jxl]"'
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    assert install_command("jxl") == 'uv pip install -e ".[jxl]"'
    assert root.name not in install_command("jxl")
