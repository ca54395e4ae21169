"""Errors of settings say where they are, what was found and what to write, in the file's terms."""

import contextlib
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from examples.train_tokenizer.config import TrainConfig
from tokpipe.config import parse_job
from tokpipe.config.explain import bare, kinds_of, validate_settings
from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError

JOB: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "native_job.yaml").read_text())
DECODER = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
TRAINING: dict[str, Any] = {
    **{key: JOB[key] for key in ("sources", "frames")},
    "output": "out",
    "tokenizer": {**JOB["tokenizer"], "decoder": DECODER},
    "phases": [
        {
            "steps": 1,
            "size": 64,
            "batches": [{"frames": 5, "clips": 1}],
            "learning_rate": [0.1, 0.1],
            "loss": {},
        }
    ],
}
DECLARES = {"temporal_stride": 4, "spatial_stride": 8, "codebook_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "table": {"kind": "table", "uri": "a.csv", "uri_column": "uri"},
    "webdataset": {"kind": "webdataset", "uri": "a.tar"},
    "vqgan": {"kind": "vqgan", "weights": "w", "preset": "emu3.5"},
    "movqgan": {"kind": "movqgan", "weights": "w"},
    "vidtok": {"kind": "vidtok", "weights": "w", "preset": "vidtok-488-4096"},
    "emu3": {"kind": "emu3", "weights": "w"},
    "cosmos_dv": {"kind": "cosmos_dv", "variant": "4x8x8", "weights": "w"},
    "custom": {"kind": "custom", "implementation": "a:B", "declares": DECLARES},
}
WRONG: tuple[Any, ...] = (
    *(None, True, -1, 2.5, "", "text", "8fps", "${X}", [], [None], [1, 2, 3], ["a"], [{"a": 1}]),
    *({}, {"kind": "x"}, "é" * 200),
)
JARGON = (
    *("Input should", "valid", "Field required", "type=", "Extra inputs", "tuple", "str ", "dict"),
    *("discriminator", "Traceback", "NoneType", "pydantic", "Value error"),
)


def changed(base: dict[str, Any], place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """Return a copy of ``base`` with another value at ``place``."""
    copied = copy.deepcopy(base)
    inner: Any = copied
    for part in place[:-1]:
        if isinstance(inner, dict) and inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]
    inner[place[-1]] = value
    return copied


def parse(data: dict[str, Any], model: type[BaseModel] = JobConfig) -> None:
    context = {"root": Path("/p"), "environ": {}}
    validate_settings(model, data, name="file.yaml", context=context)  # without parsing YAML


def message(data: dict[str, Any], model: type[BaseModel] = JobConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(data, model)
    return str(caught.value).removeprefix("file.yaml: ")


def at(place: str, value: Any, base: dict[str, Any] = JOB) -> str:
    parts = [int(part) if part.isdigit() else part for part in place.split(".")]
    model = TrainConfig if base is TRAINING else JobConfig
    return message(changed(base, tuple(parts), value), model)


def fields_of(
    annotation: Any, base: dict[str, Any], place: tuple[str | int, ...] = ()
) -> Iterator[tuple[dict[str, Any], tuple[str | int, ...]]]:
    """Yield a valid file and the place of a setting in it, for every setting of every kind."""
    annotation = bare(annotation)
    for kind, model in kinds_of(annotation).items():
        base_of_kind = changed(base, place, KINDS[kind]) if kind in KINDS else base
        if kind in KINDS or kind in ("files", "native", "fsq"):
            yield from fields_of(model, base_of_kind, place)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            yield base, (*place, name)
            yield from fields_of(info.annotation, base, (*place, name))
    elif get_args(annotation) and (*place[-1:],) in (("sources",), ("phases",), ("batches",)):
        yield from fields_of(get_args(annotation)[0], base, (*place, 0))


@pytest.mark.parametrize(("model", "base"), [(JobConfig, JOB), (TrainConfig, TRAINING)])
def test_no_wrong_value_of_any_setting_is_explained_in_terms_of_python(
    model: type[BaseModel], base: dict[str, Any]
) -> None:
    parse(base, model)
    cases = {json.dumps([data, place]): (data, place) for data, place in fields_of(model, base)}
    assert len(cases) > 100
    for data, place in cases.values():
        for wrong in WRONG:
            try:
                parse(changed(data, place, wrong), model)
            except ConfigError as error:
                text = str(error)
                assert len(text) < 1000, text
                assert str(place[-1]) in text or str(place[0]) in text, (place, wrong, text)
                without_value = text.partition("; ")[2] if "found" in text else text
                assert not [word for word in JARGON if word in without_value], (place, text)
                if wrong is None or isinstance(wrong, (list, dict)):
                    assert "found" in text or ":" in text


@pytest.mark.parametrize(
    ("place", "found", "write"),
    [
        ("frames.size", 128, "[128, 128]"),
        ("frames.size", [128], "[128, 128]"),
        ("frames.size", "128x128", "a list of 2 values, each a whole number above 0"),
        ("frames.size", ["128", 128.0], "[128, 128]"),
        ("frames.size", [1, 2, 3], "a list of 2 values, each a whole number above 0"),
        ("frames.buckets", [256, 256], "[[256, 256]]"),
        ("frames.fit", "Crop", "crop, pad or stretch"),
        ("frames.fit", "squash", "crop, pad or stretch"),
        ("sampling.fps", "8", "8.0"),
        ("sampling.fps", "29.97", "29.97"),
        ("sampling.fps", "8 fps", "a number above 0"),
        ("sampling.fps", 0, "a number above 0"),
        ("sampling.fps", float("inf"), "a number above 0"),
        ("sampling.max_clip_frames", 17.0, "17"),
        ("sampling.max_clip_frames", None, "a whole number above 0"),
        ("sampling", None, "a section with fps, max_clip_frames, min_clip_frames"),
        ("max_rejected_fraction", "5%", "a number of at least 0 and of at most 1"),
        ("max_rejected_fraction", 5, "a number of at least 0 and of at most 1"),
        ("output.shard_bytes", "128MB", "a whole number of at least 1,024"),
        ("output.accept_unsafe_store", "yes", "true"),
        ("output.accept_unsafe_store", 0, "false"),
        ("output", "s3://bucket/codes", "a section with uri"),
        ("output", 3, "a section with uri"),
        ("output.uri", None, "text"),
        ("sources", "videos/", "a list, each a section with kind: files, table or webdataset"),
        ("sources", {"kind": "files", "uri": "a"}, "[{kind: files, uri: a}]"),
        ("sources", {"kind": "fil"}, "a list, each a section with kind: files, table or webd"),
        ("sources.0", "a.mp4", "a section with kind: files, table or webdataset"),
        ("sources.0.kind", "file", "files, table or webdataset"),
        ("encode.device", "gpu", "auto, cpu or cuda"),
        ("encode.device", "cuda:0", "auto, cpu or cuda"),
        ("encode.dtype", "bf16", "float32, bfloat16 or float16"),
        ("runtime.decode", 4, "a section with min_actors"),
        ("tokenizer.patch_size", "2", "1, 2 or 4"),
        ("tokenizer.quantizer.levels", 8, "[8]"),
        ("tokenizer.quantizer.levels", "8,8,8", "a list, each a whole number of at least 2"),
        ("tokenizer.quantizer.levels", ["8"], "[8]"),
        ("tokenizer.quantizer.levels", [1], "a list, each a whole number of at least 2"),
        ("tokenizer", "builtin://fsq-4x8x8", "a section with kind: native, "),
        ("dataset", 2024, "'2024'"),
        ("dataset", "my data", "text such as webvid"),
    ],
    ids=str,
)
def test_an_error_says_what_to_write(place: str, found: Any, write: str) -> None:
    text = at(place, found)
    assert text.startswith(f"{place}: found ")
    assert f"; write {write}" in text
    if text.endswith(f"write {write}") and not re.search(r"^a | or |^text", write):
        parts = tuple(int(part) if part.isdigit() else part for part in place.split("."))
        advised = changed(JOB, parts, yaml.safe_load(write))
        with contextlib.suppress(ConfigError):  # about another setting, which does not fit it
            parse(advised)
            return
        assert f"{place}: found" not in message(advised)


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("storage", {"deadline_s": 7200}, "storage.deadline_s=7200 and runtime.write.lease_dea"),
        ("encode", {"batch_chunks": 0}, "found 0; write a whole number above 0 or auto"),
        ("runtime", {"write": {"lease_deadline_s": 3500}}, "take at most 3600 s, because `tokpipe"),
        ("runtime", {"decode": {"resources": {"GPU": 1}}}, "GPU cannot be set here: use cpus and"),
        ("runtime", {"write": {"labels": {"ray.io/node-id": "a"}}}, "ray.io/node-id cannot be set"),
        ("runtime", {"encode": {"labels": {"zone": "in(a"}}}, "runtime.encode.labels.zone: found"),
        (
            "runtime",
            {"encode": {"labels": {"zone": "in()"}}},
            "write text such as cpu, '!spot' or in",
        ),
        (
            "runtime",
            {"encode": {"labels": {"zone": "!!x"}}},
            "labels.zone: found '!!x'; write text",
        ),
        ("runtime", {"encode": {"labels": {"a b": "c d"}}}, "labels.a b: found c d; write text"),
        ("runtime", {"encode": {"labels": {"zone": 1}}}, "labels.zone: found 1; write '1'"),
        ("runtime", {"encode": {"resources": {"slot": -1}}}, "found -1; write a number above 0"),
        ("runtime", {"encode": {"accelerator_type": ""}}, "found ''; write text such as H100"),
        (
            "runtime",
            {"encode": {"resources": {"slot": 0}}},
            "slot: found 0; write a number above 0",
        ),
    ],
    ids=str,
)
def test_time_limits_and_placement_that_cannot_work_are_rejected(
    section: str, value: Any, said: str
) -> None:
    assert said in message({**JOB, section: value})
    fine = {"labels": {"zone": "!in(a, b-1)"}, "resources": {"slot": 0.5}}
    parse({**JOB, "storage": {"deadline_s": 1350}, "runtime": {"decode": fine}})


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("chunk_frames", 17, "unknown key 'chunk_frames'; the keys here are: chunking, dataset, "),
        ("frames.fps", 8, "frames: unknown key 'fps'; the keys here are: background, buckets, "),
        ("encode.device ", "x", "encode: unknown key 'device '; did you mean 'device'?"),
        ("sampling.max-clip-frames", 8, "unknown key 'max-clip-frames'; did you mean 'max_clip"),
        ("batch_size", 4, "unknown key 'batch_size'; the keys here are"),
        (
            "sources.0.folder",
            "x",
            "unknown key 'folder'; the keys here are: animation_as_picture, kind, media",
        ),
        ("Sampling", {}, "unknown key 'Sampling'; did you mean 'sampling'?"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_or_with_all_of_its_section(
    place: str, value: Any, said: str
) -> None:
    assert said in at(place, value)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("frames", "frames: is missing: write a section with size, buckets, fit"),
        ("output", "output: is missing: write a section with uri"),
        ("dataset", "dataset: is missing: write text such as webvid"),
        ("sources", "sources: is missing: write a list, each a section with kind: files, table or"),
    ],
)
def test_a_missing_setting_is_described(missing: str, said: str) -> None:
    assert said in message({key: value for key, value in JOB.items() if key != missing})


def test_a_missing_key_is_told_beside_the_one_in_its_place() -> None:
    text = at("sources.0", {"kind": "files", "path": "a"})
    assert text.startswith("sources.0.uri: is missing: write text; sources.0: unknown key 'path'; ")


def test_a_section_without_a_kind_lists_the_kinds() -> None:
    said = "sources.0: has no kind: write kind: files, table or webdataset"
    assert at("sources.0", {"uri": "a"}) == said


def test_every_mistake_is_named_once() -> None:
    data = changed(changed(JOB, ("frames", "size"), ["a", "b"]), ("sampling", "fps"), "x")
    text = message({**data, "foo_bar": 1, "baz_qux": 2})
    assert text.count("frames.size: ") == text.count("sampling.fps: ") == 1
    assert text.count("unknown key") == 2


def test_the_file_of_a_training_is_explained_alike() -> None:
    assert at("phases.0.learning_rate", 0.1, TRAINING).endswith("found 0.1; write [0.1, 0.1]")
    assert at("phases.0.learning_rate", "1e-3", TRAINING).endswith("write [0.001, 0.001]")
    assert "unknown key 'learning_rate'; the keys here are: " in at("learning_rate", 0.1, TRAINING)
    assert at("dtype", "bfloat", TRAINING) == "dtype: found bfloat; write float32 or bfloat16"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dataset: a\nframes:\n\tsize: 1\n", "near line 3: .*t. that cannot start any token"),
        (
            "dataset: a\nsources: *.mp4\n",
            "near line 2: .* put text .* in quotes",
        ),
        ("dataset: a\nframes:\n  size:[1]\n  fit: pad\n", "near line 4: .*; check the indentation"),
        ("dataset: a\ndataset: b\n", "near line 2: key 'dataset' appears twice; "),
        ("a: &x [*x]\n", "near line 1: "),
        ("a: [\n", "near line 2: "),  # the mistake is after the last line
        ("a: !!python/object:os.system x", "near line 1: "),
        ("a: !!binary aGk=\nb: !!set {c}\n", "unknown key 'a'"),
        (f"a: {'[' * 5000}", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("Some notes.\nMore.", "file.yaml: is not a job file: it holds no keys"),
    ],
)
def test_a_mistake_of_yaml_has_its_line_and_a_remedy(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_job(text, name="file.yaml", root=Path("/p"))
