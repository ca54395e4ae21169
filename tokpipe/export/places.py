"""Which code of which clip a token of a flat export is."""

import json
import math
from pathlib import Path

from tokpipe.errors import ConfigError, NotFound
from tokpipe.export.samples import values_of
from tokpipe.reader import Output
from tokpipe.reader.compose import Template
from tokpipe.reader.sequences import default_template


def place_of(
    output: Output, folder: Path, token: int, template: Template | None = None
) -> tuple[str, int]:
    """Return the clip of a token of a ``memmap`` or ``megatron`` export, and its position there.

    Raises:
        ConfigError: the folder is no such export of this output, or has tokens of another template.
        NotFound: there is no such token, or it stands for no code.
    """
    clips = folder / "clips.jsonl"
    try:
        about = json.loads((folder / "metadata.json").read_text())
        clips.stat()
    except (OSError, ValueError) as error:
        found = f"{folder} is not a finished export to memmap or megatron ({error})"
        raise ConfigError(f"{found}: name the folder that tokpipe export wrote") from error
    if about["fingerprint"] != output.fingerprint:
        raise ConfigError(f"{folder} is an export of another output than {output.uri}: name that")
    if template is None and "template" in about:
        template = default_template(output.tokenizer)
    if about.get("template_digest") != (template and template.digest):
        found = f"{folder} has tokens of the template {about.get('template', '(none)')!r}"
        raise ConfigError(f"{found}: pass the template file of the export, and none without")
    unit = "image" if template is None else "token"
    size = math.prod(about.get(side, 1) for side in "hwc") if template is None else 1
    with clips.open() as lines:
        listed = map(json.loads, lines)
        ends = ((one, size * (one[f"first_{unit}"] + one[f"num_{unit}s"])) for one in listed)
        clip = next((one for one, end in ends if token < end), None)
    if clip is None:
        raise NotFound(f"{folder} has no token {token:,}: count from 0, over all clips")
    place = token - size * clip[f"first_{unit}"]
    if template is None:
        return clip["clip_id"], place
    made = output.clip(clip["clip_id"])
    code = template.code_at(made.codes, values_of(output, made), place)
    if code is None:
        found = f"{folder}: token {token:,}, of clip {made.clip_id}"
        raise NotFound(f"{found}, is text or a special token, not a code")
    return made.clip_id, code
