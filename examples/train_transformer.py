"""Trains a small transformer on the codes of an output, and has it generate a clip.

For the demo's film, ``python examples/train_transformer.py out/demo -o out/generated.mp4`` takes
about a minute on two cores. Use it as a starting point: the model and the loop are plain PyTorch,
and only ``sequences_of`` and ``show`` are specific to tokpipe.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, default_collate

from tokpipe.errors import TokpipeError
from tokpipe.media.writing import VideoWriter
from tokpipe.reader import Clip, ClipStream, CodeCache, Output, TokenSequences, open_output
from tokpipe.reader.dataset import ClipDataset
from tokpipe.reconstruct import Reconstructor

LENGTH, BATCH, WIDTH, HEADS, LAYERS = 512, 4, 128, 4, 3
Cache = tuple[Tensor, Tensor]
"""Keys and values of the last ``LENGTH`` tokens, in one layer."""


def sequences_of(output: Output, folder: Path) -> TokenSequences:
    """Sequences of ``LENGTH`` tokens; codes are cached in ``folder``."""
    return TokenSequences(ClipStream(CodeCache(output, folder), seed=0), LENGTH)


def batches_of(sequences: TokenSequences) -> Iterator[dict[str, Tensor]]:
    """Batches without end, in another order each epoch."""
    loader = DataLoader(ClipDataset(sequences), batch_size=BATCH, collate_fn=default_collate)
    while True:
        yield from loader


class Vocabulary:
    """Tokens that occur, numbered: a small output uses a fraction of its codebook."""

    def __init__(self, sequences: TokenSequences) -> None:
        occurs = np.zeros(sequences.vocab_size, bool)
        occurs[[sequences.separator, sequences.padding]] = True
        sides = np.zeros(3, np.int64)
        for item in sequences:
            occurs[item["tokens"]] = True
            sides = np.maximum(sides, item["positions"].max(0) + 1)
        self.sides: list[int] = sides.tolist()
        """(t, h, w) that the largest clips have."""
        self.tokens = torch.from_numpy(np.flatnonzero(occurs))
        self.separator = len(self.tokens) - 2  # and padding comes last

    def __len__(self) -> int:
        return len(self.tokens)

    def numbers(self, tokens: Tensor) -> Tensor:
        return torch.searchsorted(self.tokens, tokens)


class Layer(nn.Module):
    """Attention to earlier tokens of the clip, then two linear layers on each token."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> tuple[Tensor, Cache]:
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        if cache is not None:
            key = torch.cat([cache[0], key], dim=2)[:, :, -LENGTH:]
            value = torch.cat([cache[1], value], dim=2)[:, :, -LENGTH:]
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norm2(x)), (key, value)


class Transformer(nn.Module):
    """Predicts each token from those before it in its clip."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.token = nn.Embedding(len(vocabulary), WIDTH)
        self.places = nn.ModuleList(nn.Embedding(side, WIDTH) for side in vocabulary.sides)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        # Small embeddings make small logits: before training, every token is about equally likely,
        # and the loss is ln(vocabulary). PyTorch's default, N(0, 1), starts many times higher.
        for embedding in (self.token, *self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        caches: list[Cache] | None = None,
    ) -> tuple[Tensor, list[Cache]]:
        """Return logits (B, L, vocabulary) for the token after each, and each layer's cache.

        With the caches of earlier tokens, pass only the next one: it attends to all of them.
        """
        x = self.token(tokens)
        for axis, place in enumerate(self.places):
            x = x + place(positions[..., axis].long())
        after = []
        for number, layer in enumerate(self.layers):
            x, cache = layer(x, mask, caches[number] if caches else None)
            after.append(cache)
        return F.linear(self.norm(x), self.token.weight), after


def loss_of(model: Transformer, vocabulary: Vocabulary, batch: dict[str, Tensor]) -> Tensor:
    """Cross entropy of every token that follows another of its clip."""
    tokens, documents = vocabulary.numbers(batch["tokens"]), batch["documents"]
    same_clip = documents.unsqueeze(2) == documents.unsqueeze(1)
    logits, _ = model(tokens, batch["positions"], torch.tril(same_clip).unsqueeze(1))
    counts = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    return F.cross_entropy(logits[:, :-1][counts], tokens[:, 1:][counts])


@torch.inference_mode()
def generate(
    model: Transformer, vocabulary: Vocabulary, shape: tuple[int, int, int], seed: int = 0
) -> Tensor:
    """Draw (t, h, w) codes one after the other, each from the ``LENGTH`` tokens before it."""
    generator = torch.Generator().manual_seed(seed)
    token, position, caches = torch.tensor([[vocabulary.separator]]), torch.zeros(1, 1, 3), None
    numbers = []
    for place in np.ndindex(*shape):
        logits, caches = model(token, position, None, caches)
        chances = logits[0, -1, : vocabulary.separator].softmax(0)  # codes only
        numbers.append(torch.multinomial(chances, 1, generator=generator))
        token, position = numbers[-1].view(1, 1), torch.tensor(place).view(1, 1, 3)
    return vocabulary.tokens[torch.cat(numbers)].view(shape)


def show(output: Output, like: Clip, codes: Tensor, path: Path) -> None:
    """Decode codes to a video, in place of the first chunk of a clip."""
    spec, job = output.tokenizer, output.trusted_job()
    chunk = replace(like.chunks[0], codes=codes.numpy().astype(spec.code_dtype))
    with VideoWriter(path, like.fps) as writer:
        for frames in Reconstructor(job, spec, "cpu").frames([chunk]):
            writer.write(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small transformer on codes.")
    parser.add_argument("output", metavar="OUT", help="the output of a job")
    parser.add_argument("-o", dest="video", type=Path, required=True, help="the generated clip")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--cache", type=Path, default=Path("out/codes"), help="on a local disk")
    parsed = parser.parse_args()
    torch.manual_seed(0)
    try:
        output = open_output(parsed.output)
        first = next(output.clips())
    except TokpipeError as error:
        parser.error(str(error))
    except StopIteration:
        parser.error(f"{parsed.output} has no clips yet")
    sequences = sequences_of(output, parsed.cache)
    vocabulary = Vocabulary(sequences)
    size = len(vocabulary)
    print(f"{output.num_clips:,} clips, {output.num_codes:,} codes, {size - 2:,} of them different")
    print(f"if every token is equally likely, the loss is ln({size}) = {math.log(size):.3f}")
    model = Transformer(vocabulary)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = OneCycleLR(optimizer, max_lr=3e-3, total_steps=parsed.steps, pct_start=0.1)
    for step, batch in enumerate(islice(batches_of(sequences), parsed.steps)):
        loss = loss_of(model, vocabulary, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == parsed.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    t, h, w = first.chunks[0].codes.shape
    began = time.monotonic()
    codes = generate(model, vocabulary, (t, h, w))
    rate = codes.numel() / (time.monotonic() - began)
    show(output, first, codes, parsed.video)
    print(f"generated {codes.numel():,} codes, {rate:,.0f} per second: {parsed.video}")


if __name__ == "__main__":
    main()
