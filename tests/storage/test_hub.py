"""Repositories of the Hugging Face Hub, as a stand-in for it on loopback serves them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub_server import Failure, Hub
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, NotFound, StorageError
from tokpipe.storage import Store
from tokpipe.storage.client import Client, client_of
from tokpipe.storage.fetch import fetch_to_file
from tokpipe.storage.hub import local_copy
from tokpipe.storage.listing import Listing
from tokpipe.storage.ranged import Pinned

LARGE = bytes(range(256)) * 64
FILES = {
    "README.md": b"small",
    "a b/v 1.mp4": LARGE,
    "a b/v 2.mp4": LARGE[1:],
    "a b/deep/v3.mp4": LARGE[2:],
    "a b/x.txt": b"x",
    "w.safetensors": LARGE[3:],
}
DATASET = "datasets/ann/set"


def options_of(hub: Hub) -> StoreOptions:
    return StoreOptions.model_validate(hub.storage)


def new_client(hub: Hub) -> Client:
    """A client as another process has it."""
    return Client("hf", {"endpoint": hub.endpoint}, 30.0, ())


def test_all_that_a_process_reads_of_a_branch_is_of_the_commit_that_it_first_was(hub: Hub) -> None:
    repository = hub.repository(DATASET)
    first = repository.commit(FILES)
    client = client_of(f"hf://{DATASET}", options_of(hub))
    info = client.info(f"hf://{DATASET}/a b/v 1.mp4")
    second = repository.commit({"a b/v 1.mp4": LARGE[::-1], "new.mp4": LARGE})
    for written in ("", "@main"):
        assert client.read(f"hf://{DATASET}{written}/a b/v 1.mp4") == LARGE
    assert client.path_of(f"hf://{DATASET}/x") == f"{DATASET}@{first}/x"
    assert client.read_version(f"hf://{DATASET}/a b/v 1.mp4", 5, 300, info) == LARGE[5:300]
    found = {match.uri for match in Listing(f"hf://{DATASET}/**/*.mp4", options_of(hub))}
    assert found == {
        f"hf://{DATASET}@{first}/a b/{name}" for name in ("v 1.mp4", "v 2.mp4", "deep/v3.mp4")
    }
    other = new_client(hub)
    assert other.read(f"hf://{DATASET}/a b/v 1.mp4") == LARGE[::-1]
    assert other.read(f"hf://{DATASET}@{first}/a b/v 1.mp4") == LARGE
    assert other.path_of(f"hf://{DATASET}/x") == f"{DATASET}@{second}/x"
    assert hub.count(f"^GET /api/{DATASET}/revision/main$") == 2, "once for each client"


def test_names_of_revisions_may_be_branches_with_slashes_tags_and_pull_requests(hub: Hub) -> None:
    repository = hub.repository("ann/model")
    shas = {name: repository.commit(FILES, name) for name in ("main", "a/b", "v1", "refs/pr/7")}
    client = new_client(hub)
    for written, branch in {
        "": "main",
        "@a%2Fb": "a/b",
        "@v1": "v1",
        "@refs/pr/7": "refs/pr/7",
    }.items():
        for prefix in ("", "models/"):
            uri = f"hf://{prefix}ann/model{written}/README.md"
            assert client.path_of(uri) == f"ann/model@{shas[branch]}/README.md"
            assert client.read(uri) == b"small"
    at = f"hf://ann/model@{shas['v1']}"
    num_requests = len(hub.requests)
    assert client.path_of(at) == f"ann/model@{shas['v1']}"
    assert client.path_of(f"{at}/a@b/c") == f"ann/model@{shas['v1']}/a@b/c"
    assert len(hub.requests) == num_requests, "a commit needs no request"


def test_ranges_ask_for_no_more_than_is_read_and_carry_the_token_to_the_hub_only(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_" + "s3cret" * 6
    hub.repository(DATASET).is_private = True
    hub.repository(DATASET).commit(FILES)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    uri = f"hf://{DATASET}/a b/v 1.mp4"
    client = client_of(uri, options_of(hub))
    assert client.read(uri, 100, 110) == LARGE[100:110]
    assert hub.num_sent == 10
    assert client.read(uri, len(LARGE) - 3, len(LARGE) + 50) == LARGE[-3:]
    assert client.read(uri, len(LARGE) + 5, len(LARGE) + 50) == b""
    with Pinned(uri, options_of(hub)).open(1000) as file:
        file.seek(7000)
        assert file.read(4000) == LARGE[7000:11000]
    video = fetch_to_file(uri, None, options=options_of(hub), max_bytes=10**6)
    assert video.path.read_bytes() == LARGE
    video.close()
    assert hub.leaks == []
    assert hub.count("^GET /cdn/") > 0


def failing(hub: Hub, uri: str) -> StorageError:
    with pytest.raises(StorageError) as caught:
        new_client(hub).read(uri)
    return caught.value


def test_what_is_missing_private_or_gated_is_said_at_once_and_what_to_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("ann/private").is_private = hub.repository("ann/gated").is_gated = True
    for name in ("ann/private", "ann/gated", "ann/model"):
        hub.repository(name).commit(FILES)
    for name in ("private", "none"):
        error = failing(hub, f"hf://ann/{name}/README.md")
        assert not isinstance(error, NotFound)
        assert "RepositoryNotFoundError" in str(error)
        assert "HF_TOKEN" in str(error)
    error = failing(hub, "hf://ann/gated/README.md")
    assert "GatedRepoError" in str(error)
    assert "HF_TOKEN" in str(error)
    for uri, found in {
        "hf://ann/model@v9/README.md": "RevisionNotFoundError",
        "hf://ann/model/none.txt": "FileNotFoundError",
    }.items():
        error = failing(hub, uri)
        assert isinstance(error, NotFound)
        assert str(error).startswith(f"{uri}: does not exist ({found}: ")
    assert "Repository id must be" in str(failing(hub, "hf://ann"))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wr0ng1" * 6)
    assert isinstance(failing(hub, "hf://ann/none/README.md"), NotFound)
    error = failing(hub, "hf://ann/gated/README.md")
    assert "403" in str(error)
    assert "wr0ng1" not in str(error)


def test_a_token_that_is_set_later_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_" + "s3cret" * 6
    hub.repository("ann/private").is_private = True
    sha = hub.repository("ann/private").commit(FILES)
    uri = f"hf://ann/private@{sha}/README.md"
    with pytest.raises(StorageError):
        client_of(uri, options_of(hub)).read(uri)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert client_of(uri, options_of(hub)).read(uri) == b"small"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_fails_for_now_is_asked_again(hub: Hub, status: int) -> None:
    hub.repository(DATASET).commit(FILES)
    headers = {"Retry-After": "0"}
    hub.failures += [
        Failure("/revision/", status, 2, headers),
        Failure("/cdn/", status, 1, headers),
    ]
    assert new_client(hub).read(f"hf://{DATASET}/a b/v 1.mp4", 0, 9) == LARGE[:9]
    hub.failures.append(Failure("/api/", status, 10**6, headers))
    client = Client("hf", {"endpoint": hub.endpoint}, 1.0, ())
    with pytest.raises(StorageError, match=r"finding its commit kept failing .*attempts"):
        client.read(f"hf://{DATASET}@dev/README.md")


def test_buckets_are_listed_and_read_as_they_are_now(hub: Hub) -> None:
    hub.buckets["ann/b"] = {"v/1.mp4": LARGE, "v/2.mp4": LARGE[1:], "vx/3.mp4": LARGE}
    uri = "hf://buckets/ann/b/v"
    client = new_client(hub)
    assert client.info(f"{uri}/1.mp4").size == len(LARGE)
    assert client.read(f"{uri}/1.mp4", 5, 10) == LARGE[5:10]
    hub.buckets["ann/b"]["v/1.mp4"] = b"shorter"
    hub.buckets["ann/b"]["v/4.mp4"] = b"new"
    assert client.info(f"{uri}/1.mp4").size == 7
    assert client.read(f"{uri}/1.mp4") == b"shorter"
    keys = {one.key for one in client.iter_objects(uri)}
    assert keys == {f"buckets/ann/b/v/{number}.mp4" for number in (1, 2, 4)}
    with pytest.raises(NotFound):
        client.read("hf://buckets/ann/none/x")


def test_a_store_reads_an_output_of_one_commit_and_is_not_written(hub: Hub) -> None:
    first = hub.repository(DATASET).commit({"out/job.json": b"{}", "out/shards/a": LARGE})
    store = Store(f"hf://{DATASET}/out", options_of(hub))
    assert store.uri == f"hf://{DATASET}@{first}/out"
    hub.repository(DATASET).commit({})
    assert {one.key for one in store.list("")} == {"job.json", "shards/a"}
    assert store.get("shards/a") == LARGE
    assert store.size("shards/b") is None


GET = """
import sys
from tokpipe.config.job import StoreOptions
from tokpipe.weights.read import read_object
print("ready", flush=True)
sys.stdin.readline()
print(len(read_object(sys.argv[1], StoreOptions())))
"""


def test_processes_of_a_node_download_a_file_once(hub: Hub, tmp_path: Path) -> None:
    sha = hub.repository("ann/model").commit(FILES)
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-c", GET, "hf://ann/model/w.safetensors"]
    pipe, environment = subprocess.PIPE, {**os.environ, **variables}
    both = [
        subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, text=True)
        for _ in range(2)
    ]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    assert {one.communicate("go\n")[0] for one in both} == {f"{len(FILES['w.safetensors'])}\n"}
    assert hub.count("^GET /cdn/") == 1
    words[-1] = f"hf://ann/model@{sha}/w.safetensors"
    num_requests = len(hub.requests)
    for variable in ("0", "1"):
        environment["HF_HUB_OFFLINE"] = variable
        done = subprocess.run(
            words, env=environment, input="", capture_output=True, text=True, check=True
        )
        assert done.stdout == f"ready\n{len(FILES['w.safetensors'])}\n"
    assert len(hub.requests) == num_requests, "what is cached needs no request"


def test_offline_the_cache_is_used_and_what_is_missing_is_named(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.repository("ann/model").commit(FILES)
    hub.repository("ann/model").commit(FILES, "dev")
    path = local_copy(new_client(hub), "hf://ann/model/w.safetensors")
    assert Path(path).read_bytes() == FILES["w.safetensors"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    num_requests = len(hub.requests)
    for revision in ("", "@main", f"@{sha}"):
        uri = f"hf://ann/model{revision}/w.safetensors"
        assert local_copy(new_client(hub), uri) == path
    for uri in ("hf://ann/model/README.md", "hf://ann/model@dev/w.safetensors", "hf://a/b/c"):
        with pytest.raises(ConfigError) as caught:
            local_copy(new_client(hub), uri)
        assert str(caught.value) == (
            f"{uri}: is not in this machine's cache, and HF_HUB_OFFLINE is set. Run `hf download` "
            "where there is a network, or unset the variable"
        )
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        new_client(hub).read(f"hf://{DATASET}/README.md")
    assert len(hub.requests) == num_requests
