"""Finding weights, refusing wrong ones, and never running the code inside a pickle."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tokbench import weights
from tokbench.errors import NotAvailable, UsageError, WeightsAbsent
from tokbench.spec import WeightFile

HUB = WeightFile(role="model", file="vae/model.safetensors", hub="org/name")


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKBENCH_WEIGHTS", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def put(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def in_hub_cache(root: Path, content: bytes, commit: str, reference: str | None) -> Path:
    repository = root / "models--org--name"
    if reference:
        put(repository / "refs" / reference, commit.encode())
    blob = put(repository / "blobs" / commit, content)
    link = repository / "snapshots" / commit / HUB.file
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def find(file: WeightFile, **kwargs: Any) -> Path:
    return weights.resolve([file], owner="name-vae", offline=kwargs.pop("offline", True), **kwargs)[file.role]


# ---------------------------------------------------------------------------------------------------------- search


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = in_hub_cache(tmp_path / "hub", b"cached", "c0ffee", "main")
    assert find(HUB) == cached
    monkeypatch.setenv("TOKBENCH_WEIGHTS", str(tmp_path / "mine"))
    by_owner = put(tmp_path / "mine" / "name-vae" / HUB.file)
    assert find(HUB) == by_owner
    by_hub = put(tmp_path / "mine" / "org" / "name" / HUB.file)
    assert find(HUB) == by_hub
    override = put(tmp_path / "elsewhere.safetensors")
    assert find(HUB, overrides={"model": override}) == override
    assert find(HUB, overrides={"other": override}) == by_hub


def test_hub_cache_is_read_at_the_revision(tmp_path: Path) -> None:
    main = in_hub_cache(tmp_path / "hub", b"main", "aaa", "main")
    pinned = in_hub_cache(tmp_path / "hub", b"pinned", "bbb", None)
    assert find(HUB) == main
    assert find(WeightFile("model", HUB.file, hub=HUB.hub, revision="bbb")) == pinned
    with pytest.raises(WeightsAbsent, match="at ccc"):
        find(WeightFile("model", HUB.file, hub=HUB.hub, revision="ccc"))


def test_hub_cache_follows_hf_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    cached = in_hub_cache(tmp_path / "home" / "hub", b"x", "abc", "main")
    assert find(HUB) == cached


def test_a_bare_file_name_is_not_enough_for_a_hub_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hub repository has a `model.safetensors`: another model's file must not be taken for this one's."""
    monkeypatch.setenv("TOKBENCH_WEIGHTS", str(tmp_path))
    path = put(tmp_path / "model.safetensors", b"another model")
    file = WeightFile("model", "model.safetensors", hub="org/name")
    with pytest.raises(WeightsAbsent):
        find(file)
    known = WeightFile("model", "model.safetensors", hub="org/name", sha256=sha256(b"another model"))
    assert find(known) == path
    assert find(WeightFile("model", "model.safetensors", url="https://example.org/model.safetensors")) == path


def test_package_resources_are_found_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "carrier" / "__init__.py", b"raise RuntimeError('imported')")
    path = put(tmp_path / "carrier" / "data" / "tiny.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = WeightFile("model", "data/tiny.safetensors", package="carrier")
    assert find(file) == path
    with pytest.raises(WeightsAbsent, match="package no_such_carrier"):
        find(WeightFile("model", "tiny.safetensors", package="no_such_carrier"))


def test_override_directory_and_its_mistakes(tmp_path: Path) -> None:
    whole = put(tmp_path / "clone" / HUB.file)
    everything = {weights.ALL_ROLES: tmp_path / "clone"}
    assert find(HUB, overrides=everything) == whole
    bare = put(tmp_path / "folder" / "model.safetensors")
    assert find(HUB, overrides={"model": tmp_path / "folder"}) == bare
    with pytest.raises(UsageError, match="no such file or directory"):
        find(HUB, overrides={"model": tmp_path / "nowhere"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no vae/model\.safetensors"):
        find(HUB, overrides={"model": tmp_path / "empty"})
    pair = [HUB, WeightFile("config", "config.json", hub="org/name")]
    with pytest.raises(UsageError, match="several are needed"):
        weights.resolve(pair, owner="x", offline=True, overrides={weights.ALL_ROLES: bare})


def test_an_override_is_binding(tmp_path: Path) -> None:
    in_hub_cache(tmp_path / "hub", b"cached", "c0ffee", "main")
    with pytest.raises(UsageError):
        find(HUB, overrides={"model": tmp_path / "typo"})


def test_tokbench_weights_must_be_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKBENCH_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="TOKBENCH_WEIGHTS"):
        find(HUB)


# ---------------------------------------------------------------------------------------------------------- absence


def test_absence_says_what_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKBENCH_WEIGHTS", str(tmp_path))
    pinned = WeightFile("model", HUB.file, hub="org/name", revision="abc")
    second = WeightFile("codebook", "book.pt", url="https://example.org/book.pt")
    with pytest.raises(WeightsAbsent) as caught:
        weights.resolve([pinned, second], owner="name-vae", offline=True)
    message, fix = caught.value.message, caught.value.fix
    assert message.startswith("name-vae needs vae/model.safetensors of org/name at abc (offline)")
    assert "book.pt of https://example.org/book.pt (offline)" in message
    assert str(tmp_path / "org" / "name" / HUB.file) in message
    assert str(tmp_path / "hub") in message
    assert "`hf download org/name vae/model.safetensors --revision abc`" in fix
    assert "$TOKBENCH_WEIGHTS/org/name/vae/model.safetensors" in fix
    assert "download https://example.org/book.pt to $TOKBENCH_WEIGHTS/name-vae/book.pt" in fix
    assert "`name-vae?weights=/path/to/file-or-directory`" in fix
    assert "without --offline" in fix


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_hf_hub_offline_is_respected(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setattr(weights, "_from_hub", lambda file: pytest.fail("tried the network"))
    with pytest.raises(WeightsAbsent, match="offline"):
        find(HUB, offline=False)


def test_a_failing_hub_is_an_absence_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: WeightFile) -> Path:
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(weights, "_from_hub", broken)
    with pytest.raises(WeightsAbsent, match="download failed: ConnectionError: no route to host") as caught:
        find(HUB, offline=False)
    assert "hf download" in caught.value.fix
    assert "\nmore" not in caught.value.message


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own retries would take half a minute for each tokenizer of a run."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("left to its retries"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsAbsent, match=r"download failed: URLError: .*refused"):
        find(HUB, offline=False)


def test_hub_downloads_carry_revision_and_cache(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, name: str, **kwargs: Any) -> str:
        asked.update(kwargs, repository=repository, name=name)
        return str(put(tmp_path / "downloaded"))

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setenv("HF_ENDPOINT", server)
    file = WeightFile("model", HUB.file, hub="org/name", revision="abc", sha256=sha256(b"weights"))
    assert find(file, offline=False) == tmp_path / "downloaded"
    assert (asked["repository"], asked["name"], asked["revision"]) == ("org/name", HUB.file, "abc")
    assert asked["cache_dir"] == tmp_path / "hub"


def test_missing_lists_gaps_and_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_download", lambda *a: pytest.fail("tried to download"))
    here = WeightFile("codebook", "book.pt", url="https://example.org/book.pt")
    put(tmp_path / "set" / "book.pt")
    monkeypatch.setenv("TOKBENCH_WEIGHTS", str(tmp_path / "set"))
    gaps = weights.missing([HUB, here], owner="name-vae")
    assert [gap.file for gap in gaps] == [HUB]
    assert str(tmp_path / "set" / "org" / "name" / HUB.file) in gaps[0].looked_in
    assert "hf download org/name" in gaps[0].fix
    assert weights.missing([], owner="jpeg") == ()
    assert weights.resolve([], owner="jpeg", offline=True) == {}


# --------------------------------------------------------------------------------------------------- digests, URLs


def test_a_wrong_digest_names_both_and_the_path(tmp_path: Path) -> None:
    path = put(tmp_path / "model.safetensors", b"tampered")
    file = WeightFile("model", "model.safetensors", hub="org/name", sha256=sha256(b"genuine"))
    with pytest.raises(weights.WeightsRefused) as caught:
        find(file, overrides={"model": path}, cache=tmp_path / "cache")
    for part in (str(path), sha256(b"tampered"), sha256(b"genuine")):
        assert part in caught.value.message
    assert isinstance(caught.value, NotAvailable)
    assert caught.value.state == "weights refused"
    assert find(
        WeightFile("model", "m", sha256=sha256(b"tampered").upper()),
        overrides={"model": path},
        cache=tmp_path / "cache",
    )


def test_a_wrong_size_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "model.safetensors", b"half")
    with pytest.raises(weights.WeightsRefused, match=r"has 4 bytes where .* has 8"):
        find(WeightFile("model", "model.safetensors", hub="o/n", size=8), overrides={"model": path})


def test_file_digest_is_remembered_and_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = put(tmp_path / "a", b"one"), tmp_path / "cache"
    assert weights.file_digest(path, cache=cache) == sha256(b"one")
    with monkeypatch.context() as patch:
        patch.setattr(weights, "_sha256", lambda path: pytest.fail("read the file again"))
        assert weights.file_digest(path, cache=cache) == sha256(b"one")
    path.write_bytes(b"two!")
    assert weights.file_digest(path, cache=cache) == sha256(b"two!")
    for note in cache.rglob("*.json"):
        note.write_text("{")
    assert weights.file_digest(path, cache=cache) == sha256(b"two!")
    unwritable = put(tmp_path / "file-not-a-directory")
    assert weights.file_digest(path, cache=unwritable) == sha256(b"two!")


def test_weights_digest_depends_on_contents_and_roles_only(tmp_path: Path) -> None:
    a, b, copy = put(tmp_path / "a", b"1"), put(tmp_path / "b", b"2"), put(tmp_path / "deep" / "other-name", b"1")
    cache = tmp_path / "cache"
    one = weights.weights_digest({"x": a, "y": b}, cache=cache)
    assert one == weights.weights_digest({"y": b, "x": copy}, cache=cache)
    assert one != weights.weights_digest({"x": b, "y": a}, cache=cache)
    assert len(one) == 64


@pytest.fixture
def server() -> Iterator[str]:
    """Serve `/good` and `/cut` (which promises more than it sends) on the loopback interface."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in {"/good.pt", "/cut.pt"}:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", "7" if self.path == "/good.pt" else "700")
            self.end_headers()
            self.wfile.write(b"weights")

        def log_message(self, *args: object) -> None:
            return

    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{service.server_port}"
    service.shutdown()
    service.server_close()


def test_urls_are_downloaded_once_and_checked(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    file = WeightFile("model", "good.pt", url=f"{server}/good.pt", sha256=sha256(b"weights"))
    path = find(file, offline=False, cache=cache)
    assert path.read_bytes() == b"weights"
    assert path.name == "good.pt"
    assert find(file, offline=True, cache=cache) == path
    assert [p.name for p in path.parent.iterdir()] == ["good.pt"]


@pytest.mark.parametrize(("name", "reason"), [("cut.pt", "IncompleteRead|bytes arrived"), ("gone.pt", "404")])
def test_broken_downloads_leave_nothing(name: str, reason: str, server: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(WeightsAbsent, match=reason):
        find(WeightFile("model", name, url=f"{server}/{name}"), offline=False, cache=cache)
    assert [p for p in cache.rglob("*") if p.is_file()] == []


def test_a_download_with_the_wrong_digest_is_refused_and_removed(server: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    file = WeightFile("model", "good.pt", url=f"{server}/good.pt", sha256=sha256(b"other"))
    with pytest.raises(weights.WeightsRefused, match=r"good\.pt has sha256"):
        find(file, offline=False, cache=cache)
    assert [p for p in cache.rglob("*") if p.is_file()] == []


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret.pt")
    with pytest.raises(UsageError, match="http"):
        find(WeightFile("model", "secret.pt", url=secret.as_uri()), offline=False, cache=tmp_path / "cache")


# ---------------------------------------------------------------------------------------------------------- loading


def test_states_are_read_from_both_formats(tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
    save_file(state, tmp_path / "s.safetensors")
    torch.save(state, tmp_path / "s.pt")
    torch.save(state, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model": {"ema": state}}, tmp_path / "nested.pth")
    read = [weights.load_state(tmp_path / name) for name in ("s.safetensors", "s.pt", "legacy.ckpt")]
    read.append(weights.load_state(tmp_path / "nested.pth", inside=("model", "ema")))
    for found in read:
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) and not found[key].is_cuda for key, value in state.items())
    with pytest.raises(weights.WeightsRefused, match="epoch, model"):
        weights.load_state(tmp_path / "nested.pth")
    with pytest.raises(weights.WeightsRefused, match="holds no 'state_dict'"):
        weights.load_state(tmp_path / "nested.pth", inside=("state_dict",))
    with pytest.raises(weights.WeightsRefused, match="safetensors"):
        weights.load_state(put(tmp_path / "s.onnx"))


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "zip"])
def test_a_pickle_with_code_is_refused_and_not_run(plain: bool, tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "evil.pt"
    if plain:
        path.write_bytes(pickle.dumps({"a": Payload(target)}, protocol=2))
    else:
        torch.save({"a": torch.zeros(1), "b": Payload(target)}, path)
    with pytest.raises(weights.WeightsRefused) as caught:
        weights.load_state(path)
    assert not target.exists()
    assert str(path) in caught.value.message
    assert "never runs the code" in caught.value.message
    assert "safetensors" in caught.value.fix
    if not plain:  # the file is a real threat: a plain load does run it
        torch.load(path, weights_only=False)
        assert target.exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole-{name}"
    state = {"a": torch.zeros(100)}
    save_file(state, whole) if name.endswith("tensors") else torch.save(state, whole)
    path = put(tmp_path / name, whole.read_bytes()[:200])
    with pytest.raises(weights.WeightsRefused, match=name):
        weights.load_state(path)
    with pytest.raises(weights.WeightsRefused):
        weights.load_state(put(tmp_path / f"empty-{name}", b""))


def layers(count: int = 2) -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleList([nn.Linear(2, 2) for _ in range(count)])


def test_load_into_fills_a_meta_module_without_copies() -> None:
    module = layers()
    state = {f"net.{key}": torch.randn(value.shape) for key, value in module.state_dict().items()}
    weights.load_into(module, {**state, "loss.scale": torch.ones(1)}, prefix="net.")
    own = module.state_dict()
    assert all(own[key.removeprefix("net.")].data_ptr() == value.data_ptr() for key, value in state.items())
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_load_into_casts_to_the_modules_dtype() -> None:
    module = layers(1)
    weights.load_into(module, {k: torch.ones(v.shape).half() for k, v in module.state_dict().items()})
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_load_into_names_what_does_not_fit() -> None:
    module = layers(8)
    state = {key: torch.zeros(value.shape) for key, value in module.state_dict().items()}
    del state["0.bias"]
    state["1.weight"] = torch.zeros(3, 2)
    state["extra"] = torch.zeros(1)
    with pytest.raises(weights.WeightsRefused) as caught:
        weights.load_into(module, state, source="file.pt")
    message = caught.value.message
    assert message.startswith("file.pt does not fit ModuleList: 1 keys missing: 0.bias; 1 keys unexpected: extra")
    assert "1.weight (3, 2) for (2, 2)" in message
    with pytest.raises(weights.WeightsRefused, match=r"16 keys missing: 0\.weight, .* and 6 more;"):
        weights.load_into(module, {})


def test_load_into_drops_and_allows_by_pattern_only() -> None:
    module = nn.BatchNorm1d(2)
    state = {
        "weight": torch.ones(2),
        "bias": torch.ones(2),
        "running_mean": torch.ones(2),
        "running_var": torch.ones(2),
    }
    extra = {**state, "loss.a": torch.ones(1), "optimizer": torch.ones(1)}
    with pytest.raises(weights.WeightsRefused, match="num_batches_tracked"):
        weights.load_into(module, state)
    with pytest.raises(weights.WeightsRefused, match="unexpected: optimizer"):
        weights.load_into(module, extra, drop=["loss.*"], optional=["num_batches_tracked"])
    weights.load_into(module, extra, drop=["loss.*", "optimizer"], optional=["num_batches_tracked"])
    assert int(module.state_dict()["num_batches_tracked"]) == 0


def test_load_into_leaves_no_tensor_without_a_value() -> None:
    module = layers(1)
    with pytest.raises(weights.WeightsRefused, match=r"without values for 0\.bias"):
        weights.load_into(module, {"0.weight": torch.zeros(2, 2)}, optional=["*.bias"])


def test_the_room_is_free_of_heavy_imports() -> None:
    script = (
        "import sys, tokbench.weights as w\n"
        "from tokbench.spec import WeightFile\n"
        "w.missing([WeightFile('model', 'f', hub='a/b')], owner='x')\n"
        "heavy = {'torch', 'huggingface_hub', 'numpy', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
