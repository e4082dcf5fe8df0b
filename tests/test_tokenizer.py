import gzip
import json
import random
from pathlib import Path

import pytest

from minisd.tokenizer import END, START, Tokenizer, byte_symbols

DATA = Path(__file__).parents[2] / "shared" / "data"
TABLE = DATA / "clip_bpe_simple_vocab_16e6.txt.gz"
IDS = DATA / "clip_token_ids.json"
needs_table = pytest.mark.skipif(
    not TABLE.is_file(), reason="CLIP's official table is not beside the repository, in shared/data"
)


def official_tables():
    """OpenAI's table of merges, and the vocabulary that follows from it."""
    lines = gzip.open(TABLE, "rt", encoding="utf8").read().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    symbols = byte_symbols()
    pieces = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges] + [START, END]
    return {piece: i for i, piece in enumerate(pieces)}, merges


@pytest.fixture(scope="module")
def tables():
    return official_tables()


@pytest.fixture(scope="module")
def clip(tables):
    return Tokenizer.from_tables(*tables)


@pytest.fixture(scope="module")
def reference(tables):
    transformers = pytest.importorskip("transformers", reason="see tests/requirements.txt")
    vocab, merges = tables
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


@pytest.fixture(scope="module")
def tiny():
    return Tokenizer.train(["a red boat on the sea", "a yellow star", "the red star"] * 4, 30)


def generated_texts(count=2400):
    """Texts of every kind that a user might paste."""
    rng = random.Random(0)
    words = "a red boat don't it's we'll O'Neill naïve café ½ Ⅳ 猫 寿司屋 한국어 مرحبا שלום".split()
    words += ["हिन्दी"]
    words += (
        "🚣 👩\u200d🚀 🇫🇷 ﬁn x\u200by \uff26\uff35\uff2c\uff2c İstanbul ẞ 1234 3.14 2,000".split()
    )
    words += "(soft) [x] {y} a_b #1 $5 &amp; <b> ... --- ?! photo-realistic 8k,4k".split()
    words += ["e\u0301a\u0308", "\u2018s", "\u2019s", "\u017f", "\ufeff", "\U0010ffff", "Ġ", "</w>"]
    words += ["\t", "\n", "\r\n", "\u3000", "\u00a0", "\x00", "\x07", "\u2028", '"q"']
    words += [START, END, "<|EndOfText|>", "<|", "|>"]
    planes = [(32, 127), (160, 591), (768, 879), (0x3040, 0x30FF), (0x1F300, 0x1F6FF), (0, 32),
              (0x400, 0x4FF), (0x600, 0x6FF), (0xAC00, 0xAD00), (0x2000, 0x2BFF)]  # fmt: skip
    for i in range(count):
        if i % 2:
            yield "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(1, 40)))
        else:
            glue = rng.choice(["", " ", "  ", ", "])
            yield glue.join(rng.choice(words) for _ in range(rng.choice([1, 3, 10, 60])))


@needs_table
def test_the_ids_are_those_of_the_official_tokenizer(clip):
    cases = json.loads(IDS.read_text(encoding="utf8"))
    assert len(cases) >= 10
    for case in cases:
        assert clip(case["text"])[0].tolist() == case["input_ids"], case["text"]


@needs_table
def test_generated_texts_have_the_ids_of_transformers(clip, reference):
    texts = list(generated_texts())
    theirs = reference(texts, padding="max_length", max_length=77, truncation=True).input_ids
    for text, mine, expected in zip(texts, clip(texts).tolist(), theirs):
        assert mine == expected, repr(text)


@needs_table
def test_the_official_table_has_49408_pieces_and_its_specials_last(clip):
    assert (clip.vocab_size, clip.start_id, clip.end_id, clip.pad_id) == (
        49408,
        49406,
        49407,
        49407,
    )


@needs_table
def test_a_known_prompt_has_its_known_ids(clip):
    """Golden: OpenAI's own tokenizer."""
    ids = clip("a photo of an astronaut riding a horse on mars")[0].tolist()
    assert ids[:12] == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]


def test_a_short_text_is_framed_and_padded_with_the_end_token(tiny):
    ids = tiny("a star")[0]
    assert ids.shape == (77,)
    assert ids[0] == tiny.start_id
    length = 2 + len(tiny.tokens("a star"))
    assert (ids[length - 1 :] == tiny.end_id).all()
    assert tiny.end_id not in ids[: length - 1]


def test_a_long_text_keeps_its_end_token(tiny):
    ids = tiny("boat " * 200)[0]
    assert (ids[0], ids[-1]) == (tiny.start_id, tiny.end_id)
    assert (ids[1:-1] != tiny.end_id).all()


def test_cut_says_what_did_not_fit(tiny):
    text = "star " * 75 + "the red boat"
    assert len(tiny.tokens("star")) == 1
    assert tiny.cut(text) == "the red boat"


def test_cut_is_empty_where_all_fits(tiny):
    assert tiny.cut("star " * 75) == ""


def test_a_text_cut_twice_over_is_reported_to_its_end(tiny):
    assert tiny.cut("star " * 75 + "boat " * 200).split() == ["boat"] * 200


def test_specials_in_capitals_are_text(tiny):
    assert tiny.end_id not in tiny("a<|EndOfText|>b")[0, 2:4]


@pytest.mark.parametrize("end", [START, END])
def test_specials_in_a_text_are_one_token(tiny, end):
    ids = tiny(f"a{end}b")[0].tolist()
    assert ids[2] == tiny.backend.token_to_id(end)


def test_every_byte_can_be_written(tiny):
    text = "".join(chr(i) for i in range(33, 1000))
    assert tiny.end_id not in [tiny.backend.token_to_id(t) for t in tiny.tokens(text)]


def test_case_and_runs_of_space_do_not_matter(tiny):
    assert tiny("A  RED\n\tBoat").equal(tiny("a red boat"))


def test_saving_and_loading_gives_the_same_tokenizer(tiny, tmp_path):
    tiny.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    texts = list(generated_texts(60))
    assert again(texts).equal(tiny(texts))
    assert (again.start_id, again.pad_id) == (tiny.start_id, tiny.pad_id)
    assert again.context_length == tiny.context_length


def test_the_tables_make_the_same_tokenizer(tiny):
    again = Tokenizer.from_tables(*tiny.tables())
    texts = list(generated_texts(60))
    assert again(texts).equal(tiny(texts))


def test_another_padding_token_is_used(tiny):
    padded = Tokenizer.from_tables(*tiny.tables(), pad_token="!")
    assert padded("a")[0, -1] == padded.pad_id == 0


def test_a_trained_vocabulary_has_clips_layout(tiny):
    vocab, merges = tiny.tables()
    assert vocab["!"] == 0
    assert vocab["!</w>"] == 256
    assert (tiny.start_id, tiny.end_id) == (512 + len(merges), 513 + len(merges))


def test_something_that_is_no_text_is_refused(tiny):
    with pytest.raises(ValueError, match="expected a str"):
        tiny(["a", None])


def test_a_damaged_file_is_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_vocabulary_without_clips_specials_is_refused():
    with pytest.raises(ValueError, match="lacks"):
        Tokenizer.from_tables({"a": 0}, [])
