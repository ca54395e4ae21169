"""Reads an export with megatron-core, in a process of its own: importing it changes torch.

    python -m tests.export.by_megatron FOLDER/tokens FOUND.npz LENGTH

writes the sequences of its ``IndexedDataset``, and the samples of length LENGTH of its
``GPTDataset`` with the order in which it visits documents.
"""

import sys
import tempfile
from types import SimpleNamespace

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset


def main(prefix: str, found: str, length: int, vocab_size: int) -> None:
    indexed = IndexedDataset(prefix)
    with tempfile.TemporaryDirectory() as cache:
        config = GPTDatasetConfig(
            random_seed=0,
            sequence_length=length,
            blend=([prefix], None),
            split="1,0,0",
            path_to_cache=cache,
            tokenizer=SimpleNamespace(vocab_size=vocab_size, eod=0, pad=-1, unique_identifiers={}),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
        )
        builder = BlendedMegatronDatasetBuilder(GPTDataset, [None] * 3, lambda: True, config)
        dataset = builder.build()[0]
        samples = [dataset[number] for number in range(len(dataset))]
    np.savez(
        found,
        tokens=np.concatenate([indexed[number] for number in range(len(indexed))]),
        lengths=indexed.sequence_lengths,
        documents=indexed.document_indices,
        samples=np.array([[*one["tokens"], one["labels"][-1]] for one in samples]),
        document_index=dataset.document_index,
        shuffle_index=dataset.shuffle_index,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
