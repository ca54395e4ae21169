"""What exports store: each clip as arrays, of its codes or of the tokens of a template."""

import json
import multiprocessing
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import CorruptOutput, RuntimeFault
from tokpipe.reader import Clip, Output, ShardInfo
from tokpipe.reader.compose import Template


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip. All formats store the same arrays."""

    clip_id: str
    source_uri: str
    arrays: dict[str, NDArray[Any]]
    """``codes`` (t, h, w) or (t, h, w, c). With a template ``tokens`` (n,), ``loss`` (n,), which is
    1 where a model should learn to predict the token, and ``positions`` (n, 3): t, h, w."""
    num_codes: int  # In the arrays
    sidecar: str  # JSON that describes the clip, for formats that have a place for it


@dataclass
class Source:
    """An output, and how its clips become samples, which are counted as they are read."""

    output: Output
    template: Template | None
    tokens_only: bool = False  # Without loss and positions
    num_workers: int = 1
    num_clips: int = 0
    num_codes: int = 0
    num_tokens: int = 0

    def __iter__(self) -> Iterator[Sample]:
        """Yield every clip in the order of the manifest. Worker processes share out the shards."""
        for sample in self.samples() if self.num_workers <= 1 else self._from_workers():
            self.num_clips += 1
            self.num_codes += sample.num_codes
            self.num_tokens += len(sample.arrays.get("tokens", ()))
            yield sample

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """The arrays of each sample. Tokens have the smallest dtype that Megatron reads."""
        if self.template is None:
            return {"codes": np.dtype(self.output.tokenizer.code_dtype)}
        size = self.template.vocabulary.size
        tokens = "<u2" if size <= 2**16 else "<i4" if size <= 2**31 else "<i8"
        kinds = {"tokens": tokens, "loss": "u1", "positions": "<i2"}
        names = ["tokens"] if self.tokens_only else kinds
        return {name: np.dtype(kinds[name]) for name in names}

    def describe(self, folder: Path, **counts: int) -> None:
        """Write ``metadata.json``: counts, and what the numbers in all samples mean."""
        spec, template = self.output.tokenizer, self.template
        about: dict[str, Any] = {
            **counts,
            "token_dtype": next(iter(self.dtypes.values())).name,
            "vocab_size": template.vocabulary.size if template else spec.codebook_size,
            "temporal_stride": spec.temporal_stride,
            "spatial_stride": spec.spatial_stride,
            "tokenizer": spec.name,
            "weights_hash": spec.weights_hash,
            "fingerprint": self.output.fingerprint,
        }
        if template:
            words = template.vocabulary
            about |= {"template": template.template, "template_digest": template.digest}
            about |= {"special": words.special, "first_code": int(words.offsets[0])}
        (folder / "metadata.json").write_text(json.dumps(about, indent=1) + "\n")

    def samples(self, shards: Sequence[ShardInfo] | None = None) -> Iterator[Sample]:
        """Yield every clip, or those of some shards, in the order of the manifest."""
        template = self.template
        for clip in self.output.clips(shards):
            if not re.fullmatch("[0-9a-f]{32}", clip.clip_id):
                found = f"{self.output.uri} has a clip id {clip.clip_id!r}, not 32 hex digits"
                do = "which could name any file: do not trust this output"
                raise CorruptOutput(f"export: {found}, {do}")
            codes, about = clip.codes, _described(self.output, clip)
            arrays: dict[str, NDArray[Any]] = {"codes": codes}
            num_codes = codes.size
            if template:
                document = template.compose(codes, values_of(self.output, clip))
                kinds = self.dtypes.items()
                arrays = {name: getattr(document, name).astype(kind) for name, kind in kinds}
                words = template.vocabulary
                num_codes = int((words.uses[document.tokens] >= len(words.special)).sum())
            sidecar = json.dumps(about, default=str)
            yield Sample(clip.clip_id, clip.source_uri, arrays, num_codes, sidecar)

    def _from_workers(self) -> Iterator[Sample]:
        spawn = multiprocessing.get_context("spawn")  # A fork could inherit a lock of pyarrow's
        shards, pipes = range(len(self.output.shards)), []
        for first in shards[: self.num_workers]:
            reader, writer = spawn.Pipe(duplex=False)
            share = shards[first :: self.num_workers], writer
            spawn.Process(target=self._send, args=share, daemon=True).start()
            writer.close()
            pipes.append(reader)
        for number in shards:
            try:
                found = pipes[number % self.num_workers].recv()
            except EOFError as error:
                raise RuntimeFault("export: a worker was killed, perhaps out of memory") from error
            if isinstance(found, Exception):
                raise found
            yield from found

    def _send(self, numbers: Iterable[int], pipe: Connection) -> None:
        """Run a worker. It ends with its parent, when the pipe breaks."""
        with suppress(BrokenPipeError, KeyboardInterrupt):
            for number in numbers:
                try:
                    pipe.send(list(self.samples([self.output.shards[number]])))
                except Exception as error:
                    pipe.send(error)


def values_of(output: Output, clip: Clip) -> dict[str, Any]:
    """Return what the fields of a template stand for."""
    return {**_described(output, clip), **clip.metadata}


def _described(output: Output, clip: Clip) -> dict[str, Any]:
    return {
        "clip_id": clip.clip_id,
        "source_uri": clip.source_uri,
        "shape": clip.codes.shape,
        "fps": clip.fps,
        "chunk_latents": [len(chunk.codes) for chunk in clip.chunks],
        "first_is_image": [chunk.first_is_image for chunk in clip.chunks],
        "start_pts_s": clip.chunks[0].start_pts_s,
        "end_pts_s": clip.chunks[-1].end_pts_s,
        "marks": clip.marks,
        "metadata": clip.metadata,
        "fingerprint": output.fingerprint,
    }
