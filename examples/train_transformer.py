"""Trains a small transformer on captions and codes, and has it generate a clip for a caption.

For the demo's film, ``python examples/train_transformer.py out/demo -o out/generated.mp4`` takes
a minute or two on two cores. Use it as a starting point: the model and the loop are plain
PyTorch; ``stream_of``, ``template_of`` and ``show`` are specific to tokpipe.

The output needs two columns, which come from the table of its videos: ``caption``, and ``split``
with ``train`` or ``test``. What the model learns from ``train`` is measured on ``test``.
"""

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, default_collate

from tokpipe.errors import TokpipeError
from tokpipe.media.writing import write_video
from tokpipe.reader import Clip, ClipStream, CodeCache, Output, TokenSequences, open_output
from tokpipe.reader.compose import Template, Vocabulary
from tokpipe.reader.dataset import ClipDataset
from tokpipe.reconstruct.frames import Reconstructor

BATCH, WIDTH, HEADS, LAYERS, DROPOUT = 1, 128, 4, 3, 0.1
TEMPERATURE = 0.7  # Below 1, likely codes are drawn more often than the model says
LAYOUT = "{bos}{caption}{bov}{frames:{rows:{row}{eol}}{eof}}{eov}"
SPECIAL = ("pad", "bos", "bov", "eol", "eof", "eov")
Sample = dict[str, Any]
"""``clip_id``, ``codes`` (t, h, w) int64 and ``caption``."""
Cache = tuple[Tensor, Tensor]
"""Keys and values (B, HEADS, L, WIDTH / HEADS) of earlier tokens, in one layer."""


# -- data -------------------------------------------------------------------------------------


def stream_of(cache: CodeCache, split: str) -> ClipStream:
    """Clips of one split with their captions, in another order each epoch."""
    chosen = pc.field("split") == split
    return ClipStream(cache, columns=["caption"], filter=chosen, seed=0)


def template_of(captions: Iterable[str], num_codes: int, path: Path) -> Template:
    """How a caption and a clip become a sequence: tokens of text, special tokens, then codes.

    The text tokenizer is trained on the captions, and saved to ``path``. Any other
    ``tokenizer.json`` would do.
    """
    text = Tokenizer(models.BPE())
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    text.train_from_iterator(captions, trainer)
    text.save(str(path))
    first = text.get_vocab_size()
    special = {name: first + number for number, name in enumerate(SPECIAL)}
    codes = {"size": num_codes, "offset": first + len(SPECIAL)}
    vocabulary = Vocabulary([codes], special=special, pad="pad", text=path)
    return Template(LAYOUT, vocabulary, loss=["codes"])


def batches_of(stream: ClipStream, length: int, template: Template) -> Iterator[dict[str, Tensor]]:
    """Batches without end, of sequences of whole clips."""
    sequences = TokenSequences(stream, length, template=template, cut="never")
    loader = DataLoader(ClipDataset(sequences), batch_size=BATCH, collate_fn=default_collate)
    while True:
        yield from loader


# -- model ------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Embeds tokens, and says how likely each is to be next.

    A code of finite scalar quantization is a number with one digit per channel, the lowest first.
    Its embedding is the sum of those of its digits, and its score the sum of their scores. So codes
    that training never saw are embedded near their neighbors, and a softmax over the whole
    vocabulary needs one score per digit. Any other codebook is a single digit.
    """

    def __init__(self, vocabulary: Vocabulary, levels: Sequence[int]) -> None:
        super().__init__()
        self.offset = int(vocabulary.offsets[0])  # of codes, after all other tokens
        self.others = nn.Embedding(self.offset, WIDTH)
        self.digits = nn.Embedding(sum(levels), WIDTH)
        self.levels = list(levels)
        # Small embeddings make small scores: before training, every token is about equally likely,
        # and the loss is ln(vocabulary). PyTorch's default, N(0, 1), starts many times higher.
        nn.init.normal_(self.others.weight, std=0.02)
        nn.init.normal_(self.digits.weight, std=0.02 / math.sqrt(len(levels)))  # their sum has 0.02

    def is_code(self, tokens: Tensor) -> Tensor:
        return tokens >= self.offset

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, L, WIDTH)."""
        rows = self._digits_of(tokens) + torch.tensor([0, *self.levels[:-1]]).cumsum(0)
        of_codes = self.digits(rows).sum(-2)
        of_others = self.others(tokens.clamp(max=self.offset - 1))
        return torch.where(self.is_code(tokens).unsqueeze(-1), of_codes, of_others)

    def loss(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return -ln of the probability of each token: (..., WIDTH) and (...) -> (...)."""
        scores, others = self._digit_scores(hidden), F.linear(hidden, self.others.weight)
        # The scores of codes are all sums of one score per digit, so the sum of their exponentials
        # is the product of the sums of each digit.
        of_codes = torch.stack([one.logsumexp(-1) for one in scores]).sum(0)
        total = torch.logaddexp(of_codes, others.logsumexp(-1))
        digits = self._digits_of(tokens).split(1, dim=-1)
        chosen = [one.gather(-1, digit) for one, digit in zip(scores, digits, strict=True)]
        as_code = torch.stack(chosen).sum(0)
        as_other = others.gather(-1, tokens.clamp(max=self.offset - 1).unsqueeze(-1))
        is_code = self.is_code(tokens).unsqueeze(-1)
        return total - torch.where(is_code, as_code, as_other).squeeze(-1)

    def draw(self, hidden: Tensor, generator: torch.Generator) -> int:
        """Draw one code, as a token, from the scores of hidden values (WIDTH,)."""
        code, place = 0, 1
        for scores, level in zip(self._digit_scores(hidden), self.levels, strict=True):
            chances = (scores / TEMPERATURE).softmax(0)
            code += place * int(torch.multinomial(chances, 1, generator=generator))
            place *= level
        return self.offset + code

    def _digit_scores(self, hidden: Tensor) -> tuple[Tensor, ...]:
        scores = F.linear(hidden, self.digits.weight)
        return torch.split(scores, self.levels, dim=-1)

    def _digits_of(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., digits), with zeros for tokens that are no codes."""
        rest, digits = (tokens - self.offset).clamp(min=0), []
        for level in self.levels:
            digits.append(rest % level)
            rest = rest // level
        return torch.stack(digits, dim=-1)


class Layer(nn.Module):
    """Attention to earlier tokens of the clip, then two linear layers on each token."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> tuple[Tensor, Cache]:
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        if cache is not None:
            key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.dropout(self.out(seen.transpose(1, 2).reshape(x.shape)))
        return x + self.dropout(self.mlp(self.norm2(x))), (key, value)


class Transformer(nn.Module):
    """Predicts each token from those before it in its clip's sequence.

    Args:
        tokens: embeds them.
        sides: (t, h, w) of the largest clip.
    """

    def __init__(self, tokens: Tokens, sides: Sequence[int]) -> None:
        super().__init__()
        self.tokens = tokens
        self.here = nn.ModuleList(nn.Embedding(side, WIDTH) for side in sides)
        self.next = nn.ModuleList(nn.Embedding(side, WIDTH) for side in sides)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.dropout, self.norm = nn.Dropout(DROPOUT), nn.LayerNorm(WIDTH)
        for embedding in (*self.here, *self.next):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        caches: list[Cache] | None = None,
    ) -> tuple[Tensor, list[Cache]]:
        """Return hidden values (B, L, WIDTH), for ``tokens.loss`` or ``draw``, and all caches.

        With the caches of earlier tokens, pass only the next one: it attends to all of them.

        Args:
            tokens: (B, L).
            positions: (B, L + 1, 3) t, h, w of each token and of the one after the last.
            mask: (B or 1, 1, L, L) True where one token may attend to another; None: everywhere.
        """
        x = self.tokens(tokens)
        for axis, (here, after) in enumerate(zip(self.here, self.next, strict=True)):
            x = x + here(positions[:, :-1, axis]) + after(positions[:, 1:, axis])
        x, new = self.dropout(x), []
        for number, layer in enumerate(self.layers):
            x, cache = layer(x, mask, caches[number] if caches else None)
            new.append(cache)
        return self.norm(x), new


# -- training, measuring, generating ----------------------------------------------------------


def loss_of(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss (n,) of each token that counts: by the template, the codes."""
    tokens, documents = batch["tokens"], batch["documents"][:, :-1]
    mask = torch.tril(documents.unsqueeze(2) == documents.unsqueeze(1)).unsqueeze(1)
    hidden, _ = model(tokens[:, :-1], batch["positions"], mask)
    counts = batch["loss"][:, 1:]
    return model.tokens.loss(hidden[counts], tokens[:, 1:][counts])


def train(model: Transformer, batches: Iterator[dict[str, Tensor]], steps: int) -> None:
    """Train the model, and print its loss now and then."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for step, batch in enumerate(islice(batches, steps)):
        loss = loss_of(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.eval()


@torch.inference_mode()
def bits_per_code(model: Transformer, template: Template, samples: Iterable[Sample]) -> float:
    """Return the mean of -log2 of the probability that the model gives to each code."""
    losses = []
    for sample in samples:
        document = template.compose(sample["codes"], sample)
        names = ("tokens", "positions", "loss")
        batch = {name: torch.from_numpy(getattr(document, name)).unsqueeze(0) for name in names}
        losses.append(loss_of(model, {**batch, "documents": torch.zeros_like(batch["tokens"])}))
    return torch.cat(losses).mean().item() / math.log(2)


def unigram_bits_per_code(train: Sequence[Sample], test: Sequence[Sample], num_codes: int) -> float:
    """Return the same for a model that knows only how often each code occurs in ``train``.

    Codes that do not occur count as ``extra`` occurrences, as the others do in addition. The value
    is the one that suits ``test`` best, so no unigram model of this kind is better.
    """
    occurs = np.bincount(np.concatenate([one["codes"].ravel() for one in train]), None, num_codes)
    found = occurs[np.concatenate([one["codes"].ravel() for one in test])]
    total = occurs.sum()
    return min(
        float(-np.log2((found + extra) / (total + extra * num_codes)).mean())
        for extra in 2.0 ** np.arange(-20, 5)
    )


@torch.inference_mode()
def generate(
    model: Transformer, template: Template, caption: str, shape: tuple[int, int, int], seed: int = 0
) -> NDArray[np.int64]:
    """Draw a clip for a caption; return its tokens (n,), which ``template.parse`` reads.

    The shape determines where the codes are. Only they are drawn; the other tokens are known.
    """
    generator = torch.Generator().manual_seed(seed)
    layout = template.compose(np.zeros(shape, np.int64), {"caption": caption})
    tokens = torch.from_numpy(layout.tokens).unsqueeze(0)
    positions = torch.from_numpy(layout.positions).unsqueeze(0)
    is_code = model.tokens.is_code(tokens[0]).tolist()
    first, end = is_code.index(True), len(is_code) - is_code[::-1].index(True)
    mask = torch.ones(first, first, dtype=torch.bool).tril()[None, None]
    hidden, caches = model(tokens[:, :first], positions[:, : first + 1], mask)
    for place in range(first, end):
        if place > first:
            before, both = slice(place - 1, place), slice(place - 1, place + 1)
            hidden, caches = model(tokens[:, before], positions[:, both], None, caches)
        if is_code[place]:
            tokens[0, place] = model.tokens.draw(hidden[0, -1], generator)
    return tokens[0].numpy()


def show(output: Output, like: Clip, codes: NDArray[np.int64], path: Path) -> None:
    """Decode codes to a video, in place of the first chunk of a clip."""
    spec, job = output.tokenizer, output.trusted_job()
    chunk = replace(like.chunks[0], codes=codes.astype(spec.code_dtype))
    write_video(path, like.fps, Reconstructor(job, spec, "cpu").frames([chunk]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small transformer on captions and codes.")
    parser.add_argument("output", metavar="OUT", help="the output of a job")
    parser.add_argument("-o", dest="video", type=Path, required=True, help="the generated clip")
    parser.add_argument("--caption", help="of the clip to generate; default: one that was trained")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--cache", type=Path, default=Path("out/codes"), help="on a local disk")
    parsed = parser.parse_args()
    torch.manual_seed(0)
    try:
        output = open_output(parsed.output)
        cache = CodeCache(output, parsed.cache)
        # These are small. Of a large output, count the codes and read captions while streaming.
        training, held_out = (list(stream_of(cache, split)) for split in ("train", "test"))
    except TokpipeError as error:
        parser.error(str(error))
    spec, quantizer = output.tokenizer, getattr(output.trusted_job().tokenizer, "quantizer", None)
    captions = [sample["caption"] for sample in training]
    template = template_of(captions, spec.codebook_size, parsed.cache / "tokenizer.json")
    sides = np.max([sample["codes"].shape for sample in training + held_out], axis=0).tolist()
    length = max(len(template.compose(one["codes"], one).tokens) for one in training)
    tokens = Tokens(template.vocabulary, getattr(quantizer, "levels", (spec.codebook_size,)))
    model = Transformer(tokens, sides)
    size = template.vocabulary.size
    print(f"{len(training)} clips to train on, of up to {length} tokens; {len(held_out)} held out")
    print(f"if every token is equally likely, the loss is ln({size}) = {math.log(size):.3f}")
    train(model, batches_of(stream_of(cache, "train"), length, template), parsed.steps)
    bits = bits_per_code(model, template, held_out)
    unigram = unigram_bits_per_code(training, held_out, spec.codebook_size)
    print(f"held-out clips: {bits:.2f} bits per code; a unigram model needs {unigram:.2f}")
    caption, like = parsed.caption or captions[0], output.clip(training[0]["clip_id"])
    began = time.monotonic()
    drawn = template.parse(generate(model, template, caption, like.chunks[0].codes.shape))
    rate = drawn.codes.size / (time.monotonic() - began)
    show(output, like, drawn.codes, parsed.video)
    print(f"generated {drawn.codes.size:,} codes, {rate:,.0f} per second: {parsed.video}")
    print(f"its caption: {drawn.values['caption']}")


if __name__ == "__main__":
    main()
