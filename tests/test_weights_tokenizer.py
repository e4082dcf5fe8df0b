"""Finding CLIP's tokenizer: in folders, in files, in OpenAI's own table, on the hub."""

import gzip
import json
import shutil
from pathlib import Path

import official
import pytest
from test_tokenizer import IDS, TABLE, generated_texts, needs_table
from tiny import pipeline

import weights_convert
from minisd.tokenizer import Tokenizer
from weights_convert import tokenizer_source
from weights_convert.diffusers import write_tokenizer
from weights_convert.tokenizer_source import bare_tokenizer, find_tokenizer

TEXTS = ["a red boat on the sea", "", "Ünïcödé 猫 🚣 12", "boat " * 100]


@pytest.fixture(scope="module")
def tokenizer():
    return pipeline().tokenizer


@pytest.fixture
def tables(tokenizer, tmp_path):
    """A folder with vocab.json and merges.txt."""
    write_tokenizer(tokenizer, tmp_path / "model" / "tokenizer")
    return tmp_path / "model" / "tokenizer"


# ---- OpenAI's table ----


@pytest.fixture(scope="module")
def clip():
    return find_tokenizer(TABLE)


@needs_table
def test_the_official_table_gives_the_official_ids(clip):
    for case in json.loads(IDS.read_text(encoding="utf8")):
        assert clip(case["text"])[0].tolist() == case["input_ids"], case["text"]


@needs_table
def test_the_official_table_gives_the_ids_of_transformers(clip, tmp_path):
    transformers = pytest.importorskip("transformers", reason="see tests/requirements.txt")
    write_tokenizer(clip, tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = list(generated_texts())
    assert len(set(texts)) >= 2000
    expected = theirs(texts, padding="max_length", max_length=77, truncation=True).input_ids
    for text, mine, reference in zip(texts, clip(texts).tolist(), expected):
        assert mine == reference, repr(text)


@needs_table
def test_the_table_is_read_packed_and_unpacked(clip, tmp_path):
    (tmp_path / "table.txt").write_bytes(gzip.decompress(TABLE.read_bytes()))
    assert find_tokenizer(tmp_path / "table.txt").tables() == clip.tables()


@needs_table
def test_the_padding_of_sd2_can_be_asked_for():
    assert find_tokenizer(TABLE, pad="!")("a")[0, -1] == 0


@needs_table
def test_the_specials_of_a_bare_tokenizer_have_clips_ids(clip):
    bare = bare_tokenizer()
    assert (bare.start_id, bare.end_id) == (clip.start_id, clip.end_id)
    assert bare("")[0].tolist() == find_tokenizer(TABLE, pad="!")("")[0].tolist()


@needs_table
@pytest.mark.parametrize("packed", [True, False])
def test_half_a_table_is_refused(packed, tmp_path):
    data = TABLE.read_bytes() if packed else gzip.decompress(TABLE.read_bytes())
    path = tmp_path / "table"
    path.write_bytes(data[: len(data) // 10])
    with pytest.raises(ValueError, match="table") as caught:
        find_tokenizer(path)
    assert "complete" in str(caught.value) or "damaged" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b", b"\xff\xfe\x00", b"<html>\n" * 60_000])
def test_a_file_that_is_no_table_is_refused_by_name(data, tmp_path):
    (tmp_path / "table.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"table\.txt"):
        find_tokenizer(tmp_path / "table.txt")


def test_a_table_that_unpacks_without_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_source, "LONGEST", 1000)
    with gzip.open(tmp_path / "table.gz", "wb") as file:
        file.write(b"a b\n" * 100_000)
    with pytest.raises(ValueError, match="has 249 merges"):
        find_tokenizer(tmp_path / "table.gz")


# ---- folders and tokenizer.json ----


def test_a_folder_with_tables_and_the_model_around_it_are_found(tables, tokenizer):
    for place in (tables, tables.parent, str(tables)):
        assert find_tokenizer(place)(TEXTS).equal(tokenizer(TEXTS))


def test_a_tokenizer_json_is_found_in_its_folder_and_by_itself(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        assert find_tokenizer(place)(TEXTS).equal(tokenizer(TEXTS))


def test_a_tokenizer_json_keeps_its_padding(tokenizer, tmp_path):
    Tokenizer.from_tables(*tokenizer.tables(), pad_token="!").save(tmp_path / "tokenizer.json")
    assert find_tokenizer(tmp_path)("a")[0, -1] == 0
    assert find_tokenizer(tmp_path, tokenizer_source.END)("a")[0, -1] == tokenizer.end_id


def test_a_tokenizer_json_of_transformers_is_read(tables, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers", reason="see tests/requirements.txt")
    transformers.CLIPTokenizer.from_pretrained(tables).save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "tokenizer.json").is_file()
    assert find_tokenizer(tmp_path / "theirs")(TEXTS).equal(tokenizer(TEXTS))


def test_merges_with_the_line_ends_of_windows_are_read(tables, tokenizer):
    path = tables / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert find_tokenizer(tables)(TEXTS).equal(tokenizer(TEXTS))


@pytest.mark.parametrize(("name", "content"), [
    ("merges.txt", "#version: 0.2\na b c\n"), ("merges.txt", b"\xff\xfe"), ("vocab.json", "[]"),
    ("vocab.json", '{"a": 1}'), ("vocab.json", '{"a": "b"}'),
    ("tokenizer.json", "{}"), ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": [3]}}'),
    ("tokenizer.json", '{"model": {"vocab": {"a": 0}, "merges": ["a a"]}}'),
])  # fmt: skip
def test_a_damaged_tokenizer_is_refused_by_place(tables, name, content):
    data = content if isinstance(content, bytes) else content.encode()
    (tables / name).write_bytes(data)
    with pytest.raises(ValueError, match="tokenizer"):
        find_tokenizer(tables)


def test_a_place_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither"):
        find_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        find_tokenizer(tmp_path / "nowhere")


# ---- the hub ----


def test_without_a_place_clips_own_is_fetched(tables, tokenizer, monkeypatch):
    asked = []

    def download(hub_id, allow_patterns):
        asked.append((hub_id, allow_patterns))
        return str(tables)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_tokenizer(None)(TEXTS).equal(tokenizer(TEXTS))
    assert asked == [(tokenizer_source.HUB_ID, ["vocab.json", "merges.txt"])]


def test_without_a_connection_the_files_and_what_to_do_with_them_are_named(monkeypatch):
    def download(*_arguments, **_more):
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ValueError, match="by hand") as caught:
        find_tokenizer(None)
    for word in ("no connection", "vocab.json", "merges.txt", tokenizer_source.HUB_ID,
                 "bpe_simple_vocab_16e6.txt.gz", "--tokenizer PATH", "tokenizer=PATH"):  # fmt: skip
        assert word in str(caught.value)


# ---- beside a single file ----


@pytest.mark.parametrize("place", ["tokenizer", "."])
def test_a_single_file_takes_the_tokenizer_that_lies_beside_it(place, tmp_path):
    pipe = official.official()
    file = official.write(official.state_of(pipe), tmp_path / "model.safetensors")
    write_tokenizer(pipe.tokenizer, tmp_path / place)
    assert weights_convert.open(file).tokenizer(TEXTS).equal(pipe.tokenizer(TEXTS))


def test_openais_table_beside_a_file_is_found(tmp_path):
    assert tokenizer_source.beside(tmp_path / "model.safetensors") is None
    table = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    table.touch()
    assert tokenizer_source.beside(tmp_path / "model.safetensors") == table


def test_a_file_that_was_written_here_keeps_its_own_tokenizer(tmp_path):
    pipe = official.official()
    weights_convert.save(pipe, tmp_path / "own.safetensors", layout="single-file")
    write_tokenizer(Tokenizer.train(["another text"] * 3, 9), tmp_path / "tokenizer")
    opened = weights_convert.open(tmp_path / "own.safetensors")
    assert opened.tokenizer.tables() == pipe.tokenizer.tables()


# ---- in a pipeline ----


def test_a_native_folder_takes_another_tokenizer(tables, tmp_path):
    weights_convert.save(pipeline(), tmp_path / "native")
    config = tables / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "!"}))
    assert weights_convert.open(tmp_path / "native", tokenizer=tables).tokenizer("a")[0, -1] == 0


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    weights_convert.save(pipeline(), tmp_path / "model", layout="diffusers")
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    with pytest.raises(ValueError, match="give a tokenizer"):
        weights_convert.open(Path(tmp_path / "model"))
