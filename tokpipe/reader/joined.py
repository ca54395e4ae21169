"""Opens outputs, also several as one."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from tokpipe.config.job import PartConfig, StoreOptions
from tokpipe.config.trust import NO_TRUST, Trust
from tokpipe.errors import ConfigError, NotFound
from tokpipe.formats.checks import as_damage
from tokpipe.formats.job_record import differences
from tokpipe.formats.manifest import Totals
from tokpipe.formats.shard_reader import ShardReader
from tokpipe.reader.output import Output
from tokpipe.reader.values import Clip, ShardInfo, ShardList
from tokpipe.storage import Store
from tokpipe.types import Rejected


def open_output(
    uri: str | Sequence[str],
    options: StoreOptions | None = None,
    *,
    trust: Trust = NO_TRUST,
    follow: bool = False,
    max_wait_s: float = math.inf,
) -> Output:
    """Open the output at ``uri`` as it is committed now.

    Every object is checked against the manifest's checksums, and every row against its own, before
    any code is returned. That costs about a second per GB.

    Several outputs with the same fingerprint are read as one: the clips of the first, then those of
    the next. None may have a clip that another has. Unless they are parts of one job or their
    datasets have different names, all of their manifests are read to see that.

    Args:
        uri: the job's ``output.uri``, or those of several jobs.
        options: how to reach the store, as in a job file.
        trust: what the output may name, to decode its codes and sources to pixels.
        follow: a ``ClipStream`` of the output begins while its job still runs, and waits for more.
        max_wait_s: how long it waits for a commit before it raises IncompleteOutput.

    Raises:
        NotFound: there is no output at this URI.
        CorruptOutput: its record or its manifest is damaged.
        ConfigError: several outputs have different fingerprints, or a clip in common.
    """
    uris = [uri] if isinstance(uri, str) else uri
    outputs = [Output(Store(one, options or StoreOptions()), trust=trust) for one in uris]
    if len(outputs) != 1:
        if follow or not outputs:
            raise ConfigError(f"follow={follow} does not go with {len(outputs)} outputs: open one")
        return JoinedOutput(outputs)
    (output,) = outputs
    output.follow, output.max_wait_s = follow, max_wait_s
    return output


class JoinedOutput(Output):
    """Several outputs of one fingerprint, read as one. Each is as it was when it was opened."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._joined, first = tuple(outputs), outputs[0]
        self.record, self.trust = first.record, first.trust
        self.follow, self.max_wait_s = False, math.inf
        for other in outputs[1:]:
            if changed := differences(_kind_of(first), _kind_of(other), "and"):
                raise ConfigError(
                    f"{first.uri} and {other.uri} cannot be read as one: they differ in "
                    f"{'; '.join(changed)}. A ClipMix takes several outputs of one tokenizer"
                )
        self.shards = ShardList(*((one.store, one.state.shards) for one in outputs))
        self._check_distinct()

    def _check_distinct(self) -> None:
        """Raise ConfigError if two outputs have the same clip, which a dataset would hold twice."""
        of_dataset = defaultdict[str, list[Output]](list)  # Ids depend on the dataset's name
        for one in self.joined:
            of_dataset[one.record.dataset].append(one)
        for outputs in of_dataset.values():
            parts = [_part_of(one) for one in outputs]
            if len({part and part.of for part in parts}) == 1 and len({*parts}) == len(parts):
                continue
            hashes = np.sort(np.concatenate([one.index.hashes for one in outputs]))
            for repeated in hashes[1:][hashes[1:] == hashes[:-1]]:  # maybe of two ids, by accident
                holder = dict[str, Output]()
                for one in outputs:
                    for number in one.index.shards_with(repeated):
                        table = one.side_table(one.shards[number], ["clip_id"])
                        for clip_id in table.column("clip_id").to_pylist():
                            if (other := holder.setdefault(clip_id, one)) is not one:
                                raise ConfigError(
                                    f"clip {clip_id} is in both {other.uri} and {one.uri}, so they "
                                    "cannot be read as one: it would be there twice"
                                )

    @property
    def joined(self) -> tuple[Output, ...]:
        return self._joined

    @property
    def uri(self) -> str:
        return ", ".join(one.uri for one in self.joined)

    @property
    def names(self) -> list[str]:
        return [f"{one.record.dataset} by {one.record.writer}" for one in self.joined]

    @property
    def totals(self) -> Totals:
        return sum((one.totals for one in self.joined), Totals())

    @property
    def num_rows(self) -> int:
        return sum(one.num_rows for one in self.joined)

    @property
    def num_rows_left(self) -> int:
        return sum(one.num_rows_left for one in self.joined)

    def refresh(self) -> bool:
        raise ConfigError(f"{self.uri}: open them again to see what was committed since")

    def rejected(self) -> Iterator[Rejected]:
        return chain.from_iterable(one.rejected() for one in self.joined)

    def clip(self, clip_id: str) -> Clip:
        for one in self.joined:
            with suppress(NotFound):
                return one.clip(clip_id)
        raise self.not_found(clip_id)

    def side_table(self, info: ShardInfo, columns: Sequence[str] | None = None) -> pa.Table:
        return self.joined[info.output].side_table(info, columns)

    def verified_shard(self, info: ShardInfo) -> ShardReader:
        return self.joined[info.output].verified_shard(info)


def _kind_of(output: Output) -> dict[str, Any]:
    """Return what is the same for all clips of an output."""
    record = output.record
    carried = {"columns": record.plan.get("columns")}
    return {"fingerprint": record.fingerprint, **record.settings, **carried}


def _part_of(output: Output) -> PartConfig | None:
    part = output.record.job.get("part")
    with as_damage(output.uri, "its job names no part", ValueError):
        return None if part is None else PartConfig.model_validate(part)
