"""A clip and its text become one sequence, and parse back exactly."""

import pickle
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.reader.random_templates import round_trips
from tokpipe.errors import ConfigError
from tokpipe.reader.compose import Template, Vocabulary

SPECIAL = ["<|bos|>", "<|bov|>", "<|eol|>", "<|eof|>", "<|eov|>", "<|pad|>"]
NAMES = {text[2:-2]: text for text in SPECIAL}
VISUAL = [f"<|visual token {code:06d}|>" for code in range(64)]
CAPTIONS = [
    "", "a dog", "<|bos|>", "a <|visual token 000003|> <|eov|>", "\x00\x1b\r\n\t", "e\u0301\u0301",
    "日本語の字幕", "👩‍👧🏽 🇺🇳", " two  spaces ", "{h}*{w} 3*4", "word " * 500,
]  # fmt: skip
TEMPLATES = [
    "{bos}{caption}{bov}{frames:{rows:{row}{eol}}{eof}}{eov}",
    "{bos}{caption}{bov}{t}*{h}*{w}{eol}{codes}{eov}",
    "{bos}A clip: {caption} ({fps} fps){bov}{frames(eof):{rows(eol):{row}}}{eol}{eof}{eov}",
    "{bos}{frames:{notes}{bov}{h}x{w}{eol}{frame}{eov}}",
    "{bos}{caption}{bov}{frames:{rows:{row}{eol}}{eof}}{eov}{year:int}",
]


def trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*CAPTIONS, "3*4 clip: a dog (8.0 fps)"] * 20, trainer)
    tokenizer.add_special_tokens(VISUAL)
    return tokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("text") / "tokenizer.json"
    trained().save(str(found))
    return found


def vocabulary(path: Path, books: int = 1) -> Vocabulary:
    if books == 1:
        codes: list[dict[str, Any]] = [{"size": 64, "pattern": "<|visual token {:06d}|>"}]
    else:
        codes = [{"size": 9 + book, "offset": 1000 + 100 * book} for book in range(books)]
    return Vocabulary(codes, special=NAMES, pad="pad", text=path)


@pytest.mark.parametrize("books", [1, 2])
@pytest.mark.parametrize("layout", TEMPLATES)
def test_clips_and_text_come_back(path: Path, layout: str, books: int) -> None:
    draw = random.Random(0)
    template = Template(layout, vocabulary(path, books))
    for number in range(200):
        shape = tuple(draw.choice([1, 2, 3, 5]) for _ in range(3))
        codes = np.random.default_rng(number).integers(0, 9, (*shape, books))
        codes = codes[..., 0] if books == 1 else codes
        values = {
            "caption": draw.choice(CAPTIONS), "fps": draw.choice([8.0, 23.976, 1e-9, 1e22]),
            "notes": [draw.choice(CAPTIONS) for _ in range(shape[0])], "year": number,
        }  # fmt: skip
        document = template.compose(codes, values)
        found = template.parse(document.tokens)
        np.testing.assert_array_equal(found.codes, codes)
        assert found.values == {name: values[name] for name in found.values}
        assert set(found.values) == {name for name in values if "{" + name in layout}
        assert len(document.tokens) == len(document.loss) == len(document.positions)


def test_text_of_special_tokens_stays_text(path: Path) -> None:
    template = Template(TEMPLATES[0], vocabulary(path), loss=["codes", "eov"])
    document = template.compose(np.full((1, 2, 2), 3), {"caption": "".join([*SPECIAL, VISUAL[3]])})
    special = template.vocabulary.special
    assert (document.tokens == special["bos"]).sum() == 1
    visual = int(template.vocabulary.offsets[0]) + 3
    assert (document.tokens == visual).sum() == 4
    counted = (document.tokens == visual) | (document.tokens == special["eov"])
    np.testing.assert_array_equal(document.loss, counted)


def test_a_changed_sequence_is_rejected(path: Path) -> None:
    template = Template(TEMPLATES[0], vocabulary(path))
    tokens = template.compose(np.zeros((2, 2, 2), int), {"caption": "a dog"}).tokens
    cut = tokens[:-1], tokens[1:], tokens[:0], np.delete(tokens, -3)
    for wrong in (*cut, np.append(tokens, 5), np.append(tokens, 10**9), -tokens, tokens[None]):
        with pytest.raises(ConfigError, match="no clip gives this sequence"):
            template.parse(wrong)


@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        ("{bos}{codes}", "shape of a clip cannot be found"),
        ("{bos}{caption}{title}{bov}{frames:{frame}{eof}}", "cannot be found|could not be told"),
        ("{bos}{h}{w}{bov}{frames:{frame}{eof}}", "could not be told"),
        ("{bos}{caption}", "every code of a clip exactly once"),
        ("{bos}{frames:{rows:{row}{eol}}", "unmatched '{'|expected '}'"),
        ("{rows:{row}}", "rows:...} go into {frames"),
        ("{frames:{codes}}", "found {codes} in"),
        ("{frames:{note}{frame}{bov}{note}}", "the text of two frames could not be told apart"),
        ("{bos}{frames(caption):{frame}}{eov}", "outside of loops"),
        ("{bos}{t}*{h}*{w}{codes.1}", "codebooks are 0 to 0"),
    ],
)
def test_ambiguous_templates_are_rejected(path: Path, layout: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Template(layout, vocabulary(path))


def test_a_tokenizer_that_changes_text_is_rejected(tmp_path: Path) -> None:
    tokenizer = trained()
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "lossy.json"))
    with pytest.raises(ConfigError, match="changes text: 'A Dog, 2 cats' comes back as 'a dog"):
        vocabulary(tmp_path / "lossy.json")


def test_overlapping_tokens_are_rejected(path: Path) -> None:
    with pytest.raises(ConfigError, match="would be both codebook 0 and text"):
        Vocabulary([{"size": 64, "offset": 20}], text=path)
    with pytest.raises(ConfigError, match="would be both"):
        Vocabulary([{"size": 8, "offset": 0}], special={"bos": 7})


def test_codes_of_a_position_may_share_a_codebook() -> None:
    books = [{"size": 8, "offset": 0, "repeat": 3}, {"size": 4, "offset": 8}]
    special = {"eol": 12, "eof": 13}
    template = Template("{frames(eof):{rows(eol):{row}}}", Vocabulary(books, special=special))
    assert template.vocabulary.size == 14
    codes = np.random.default_rng(0).integers(0, [8, 8, 8, 4], (3, 2, 2, 4))
    tokens = template.compose(codes).tokens
    assert tokens[:4].tolist() == [*codes[0, 0, 0, :3], codes[0, 0, 0, 3] + 8]
    assert np.array_equal(template.parse(tokens).codes, codes)
    with pytest.raises(ConfigError, match=r"codebooks of \[8, 8, 8, 4\] codes"):
        template.compose(codes[..., :2])


def test_a_token_that_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match=r"special\.bos: found 16777216; write"):
        Vocabulary([{"size": 8, "offset": 0}], special={"bos": 2**24})


def test_templates_travel_to_workers(path: Path) -> None:
    template = Template(TEMPLATES[0], vocabulary(path))
    codes = np.arange(12).reshape(3, 2, 2)
    again = pickle.loads(pickle.dumps(template)).compose(codes, {"caption": "a dog"})
    np.testing.assert_array_equal(
        again.tokens, template.compose(codes, {"caption": "a dog"}).tokens
    )


def preset_template(folder: Path, preset: str) -> tuple[Template, Tokenizer]:
    """Return a preset's template and its tokenizer, with Emu3's tokens and 64 visual ones."""
    tokenizer = trained()
    emu3 = ["<|endoftext|>", "<|extra_200|>", "<|extra_201|>", "<|extra_203|>", "<|extra_204|>"]
    emu3 += ["<|image token|>", "<|image start|>", "<|image end|>", "<image>"]
    tokenizer.add_special_tokens(emu3)
    tokenizer.save(str(folder / "tokenizer.json"))
    text = "{text: tokenizer.json, codes: [{size: 64, pattern: '<|visual token {:06d}|>'}]}"
    (folder / "template.yaml").write_text(f"preset: {preset}\nvocabulary: {text}\n")
    return Template.load(folder / "template.yaml"), tokenizer


@pytest.mark.parametrize("preset", ["emu3", "emu3_video", "interleaved"])
def test_presets_load_and_have_the_published_form(tmp_path: Path, preset: str) -> None:
    from transformers.models.emu3.modeling_emu3 import Emu3ImageVocabularyMapping

    template, tokenizer = preset_template(tmp_path, preset)
    num_frames = 1 if preset == "emu3" else 2
    codes = np.random.default_rng(0).integers(0, 64, (num_frames, 3, 4))
    caption: Any = ["a", "b c"] if preset == "interleaved" else "a dog"
    tokens = template.compose(codes, {"caption": caption}).tokens
    found = template.parse(tokens)
    np.testing.assert_array_equal(found.codes, codes)
    assert found.values == {"caption": caption}
    if preset == "emu3":
        mapping: Any = cast(Any, Emu3ImageVocabularyMapping)(tokenizer.get_vocab())
        image = mapping.convert_img2bpe(torch.from_numpy(codes[0])).flatten().tolist()
        start = tokens.tolist().index(image[0])
        assert tokens[start : start + len(image)].tolist() == image
        wanted = "<|extra_203|>a dog<|image start|>3*4<|image token|>"
        assert tokenizer.decode(tokens[:start].tolist(), skip_special_tokens=False) == wanted
        rest = tokenizer.decode(tokens[start + len(image) :].tolist(), skip_special_tokens=False)
        assert rest == "<|extra_201|><|image end|>"


@pytest.mark.parametrize("caption", ["", "a dog", "12 3*4", "日本語 👩‍👧🏽", "<|bo"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 4), (1, 5, 2)])
def test_images_have_the_tokens_of_the_processor_of_emu3(
    tmp_path: Path, shape: tuple[int, int, int], caption: str
) -> None:
    image = pytest.importorskip("PIL.Image", reason="Emu3Processor needs it")
    from transformers import Emu3Processor, PreTrainedTokenizerFast
    from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor
    from transformers.models.emu3.modeling_emu3 import Emu3ImageVocabularyMapping

    template, tokenizer = preset_template(tmp_path, "emu3")
    names = {
        "image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
    }  # fmt: skip
    of_emu3: Any = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=tokenizer, bos_token="<|extra_203|>", extra_special_tokens=names
    )
    processor: Any = cast(Any, Emu3Processor)(Emu3ImageProcessor(min_pixels=64), of_emu3)
    picture = image.new("RGB", (8 * shape[2], 8 * shape[1]))
    wanted = np.array(processor(images=[picture], text=[f"{caption}<image>"])["input_ids"][0])
    # The processor leaves room for the codes; the model fills them in.
    codes = np.random.default_rng(0).integers(0, 64, shape)
    mapping: Any = cast(Any, Emu3ImageVocabularyMapping)(tokenizer.get_vocab())
    in_rows = mapping.convert_img2bpe(torch.from_numpy(codes[0])).flatten().numpy()
    wanted[wanted == tokenizer.token_to_id("<image>")] = in_rows
    tokens = template.compose(codes, {"caption": caption}).tokens
    assert tokens.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    "num_templates", [60, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_random_clips_come_back_from_random_templates(
    path: Path, num_templates: int, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabularies = [vocabulary(path, books) for books in (1, 2, 3)]
    count = round_trips(vocabularies, num_templates, seed=0)
    with capsys.disabled():
        print(f"\nround trips of random templates and clips: {count}, none failed")
    assert count.trips == 50 * num_templates
    assert count.without_shape < num_templates / 2
    assert count.rejected < num_templates
