"""Prints the contents of an output: ``python examples/read_codes.py out/demo``."""

import sys
from itertools import islice

import numpy as np

from tokpipe.reader import open_output


def main() -> None:
    output = open_output(sys.argv[1])
    size = output.tokenizer.codebook_size
    print(f"{output.num_clips:,} clips, {output.num_codes:,} codes of {size:,}")
    used: set[int] = set()
    for clip in islice(output.clips(), 1000):
        for chunk in clip.chunks:
            used.update(np.unique(chunk.codes).tolist())
        shapes = " ".join("x".join(map(str, chunk.codes.shape)) for chunk in clip.chunks)
        first = clip.chunks[0].codes.ravel()[:6].tolist()
        print(f"  {clip.clip_id}  chunks {shapes}  codes {first} ...")
    print(f"{len(used):,} different codes in them")


if __name__ == "__main__":
    main()
