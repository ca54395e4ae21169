"""Trains a small transformer on the codes of an output, and has it generate a clip::

    python examples/train_transformer.py out/demo -o out/generated.mp4

It memorizes the demo's three clips in a minute on two cores. Use it as a starting point: the loop
is plain PyTorch, and everything specific to tokpipe is in ``sequences_of`` and ``show``.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from tokpipe.media.writing import VideoWriter
from tokpipe.reader import Chunk, ClipStream, CodeCache, Output, TokenSequences, open_output
from tokpipe.reader.dataset import ClipDataset
from tokpipe.reconstruct import Reconstructor

LENGTH, BATCH, WIDTH, HEADS, LAYERS = 512, 4, 128, 4, 3


def sequences_of(output: Output, folder: Path) -> TokenSequences:
    """Sequences of ``LENGTH`` tokens; codes are cached in ``folder``."""
    return TokenSequences(ClipStream(CodeCache(output, folder), seed=0), LENGTH)


def batches_of(sequences: TokenSequences) -> Iterator[dict[str, Tensor]]:
    """Batches without end, in another order each epoch."""
    epoch = 0
    while True:
        sequences.stream.set_epoch(epoch)
        yield from DataLoader(ClipDataset(sequences), batch_size=BATCH, collate_fn=default_collate)
        epoch += 1


class Vocabulary:
    """Tokens that occur, numbered: a small output uses a fraction of its codebook."""

    def __init__(self, sequences: TokenSequences) -> None:
        tokens = [item["tokens"] for item in sequences]
        known = np.unique(np.concatenate([*tokens, [sequences.separator, sequences.padding]]))
        self.tokens = torch.from_numpy(known)
        self.num_codes = int((known < sequences.separator).sum())  # they are the first
        self.separator = self.num_codes

    def numbers(self, tokens: Tensor) -> Tensor:
        return torch.searchsorted(self.tokens, tokens)


class Transformer(nn.Module):
    """Predicts each token from those before it in its clip."""

    def __init__(self, vocab_size: int, sides: tuple[int, int, int]) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, WIDTH)
        self.places = nn.ModuleList(nn.Embedding(side, WIDTH) for side in sides)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """(B, L), (B, L, 3), (B, L) -> (B, L, vocab_size), for the token after each."""
        x = self.token(tokens)
        for axis, place in enumerate(self.places):
            x = x + place(positions[..., axis].long())
        same = documents.unsqueeze(2) == documents.unsqueeze(1)
        mask = torch.tril(same).unsqueeze(1)
        for layer in self.layers:
            x = layer(x, mask)
        logits: Tensor = F.linear(self.norm(x), self.token.weight)
        return logits


class Layer(nn.Module):
    """Attention among the tokens of a clip, then two linear layers on each."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


def loss_of(model: Transformer, vocabulary: Vocabulary, batch: dict[str, Tensor]) -> Tensor:
    """Cross entropy of every token that follows another of its clip."""
    tokens, documents = vocabulary.numbers(batch["tokens"]), batch["documents"]
    logits = model(tokens, batch["positions"], documents)
    counts = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    return F.cross_entropy(logits[:, :-1][counts], tokens[:, 1:][counts])


@torch.no_grad()
def generate(
    model: Transformer, vocabulary: Vocabulary, shape: tuple[int, int, int], seed: int = 0
) -> Tensor:
    """(t, h, w) codes, drawn one after the other."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.from_numpy(np.indices(shape).reshape(3, -1).T.copy())
    positions = torch.cat([torch.zeros(1, 3, dtype=torch.int64), places]).unsqueeze(0)
    numbers = torch.tensor([[vocabulary.separator]])
    for step in range(1, positions.shape[1]):
        seen = positions[:, :step]
        logits = model(numbers, seen, torch.zeros(numbers.shape))[0, -1, : vocabulary.num_codes]
        drawn = torch.multinomial(logits.softmax(0), 1, generator=generator)
        numbers = torch.cat([numbers, drawn.unsqueeze(0)], dim=1)
    return vocabulary.tokens[numbers[0, 1:]].view(shape)


def show(output: Output, codes: Tensor, path: Path) -> None:
    """Decode codes (t, h, w) to a video."""
    spec = output.tokenizer
    job = output.record.job_config(output.store.uri)
    num_frames = spec.first_frames + spec.temporal_stride * (len(codes) - 1)
    chunk = Chunk(
        codes=codes.numpy().astype(spec.code_dtype),
        first_is_image=spec.first_frames == 1,
        frame_start=0,
        n_frames=num_frames,
        n_pad_frames=0,
        n_context_frames=0,
        start_pts_s=0.0,
        end_pts_s=0.0,
    )
    with VideoWriter(path, job.sampling.fps or 8.0) as writer:
        for frames in Reconstructor(job, spec, "cpu").frames([chunk]):
            writer.write(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small transformer on codes.")
    parser.add_argument("output", metavar="OUT", help="the output of a job")
    parser.add_argument("-o", dest="video", type=Path, required=True, help="the generated clip")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cache", type=Path, default=Path("out/codes"), help="on a local disk")
    parsed = parser.parse_args()
    torch.manual_seed(0)
    output = open_output(parsed.output)
    sequences = sequences_of(output, parsed.cache)
    vocabulary = Vocabulary(sequences)
    sides = np.max([item["positions"].max(0) for item in sequences], axis=0) + 1
    grid = tuple(int(side) for side in sides)
    model = Transformer(len(vocabulary.tokens), (grid[0], grid[1], grid[2]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step, batch in enumerate(islice(batches_of(sequences), parsed.steps)):
        loss = loss_of(model, vocabulary, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == parsed.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    codes = generate(model.eval(), vocabulary, (min(2, grid[0]), grid[1], grid[2]))
    show(output, codes, parsed.video)
    print(f"generated {tuple(codes.shape)} codes: {parsed.video}")


if __name__ == "__main__":
    main()
