"""CLIP's tokenizer: text to the ids of byte-pair pieces, always 77 of them."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
# CLIP's splitting rule: contractions, words, single digits, runs of anything else but spaces. The
# specials in capitals reach it, in lower case, as text; it keeps them in one part.
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes, in byte order as CLIP's table lists them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def _assemble(model: models.BPE, length: int, pad_token: str) -> tokenizers.Tokenizer:
    """CLIP's rules around a byte-pair table: clean, split, frame by START and END, pad, cut."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
         normalizers.Lowercase()]
    )  # fmt: skip
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )  # fmt: skip
    backend.decoder = ByteLevel()
    backend.add_special_tokens([START, END])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (START, END)],
    )
    backend.enable_truncation(length)
    backend.enable_padding(
        length=length, pad_id=backend.token_to_id(pad_token), pad_token=pad_token
    )
    return backend


class Tokenizer:
    """Byte-level BPE as CLIP does it: lower case, 77 ids, cut at the end or padded with END.

    [CLIP 2.4; Neural Machine Translation of Rare Words with Subword Units, Algorithm 1]
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        if backend.padding is None or backend.truncation is None:
            raise ValueError("the tokenizer has no fixed length; make it by a method of Tokenizer")
        self.backend = backend
        self.context_length: int = backend.padding["length"]
        self.start_id: int = backend.token_to_id(START)
        self.end_id: int = backend.token_to_id(END)
        self.pad_id: int = backend.padding["pad_id"]

    @classmethod
    def from_tables(
        cls,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        context_length: int = 77,
        pad_token: str = END,
    ) -> Self:
        """From CLIP's two tables: piece -> id, and the merges in order of learning."""
        missing = {START, END, pad_token} - set(vocab)
        if missing:
            raise ValueError(f"the vocabulary lacks {sorted(missing)}; is it CLIP's?")
        model = models.BPE(
            vocab, list(merges), unk_token=END, end_of_word_suffix=END_OF_WORD,
            continuing_subword_prefix="",
        )  # fmt: skip
        return cls(_assemble(model, context_length, pad_token))

    @classmethod
    def train(cls, texts: Iterable[str], merges: int, context_length: int = 77) -> Self:
        """Learn `merges` merges from texts. The ids are laid out as CLIP's: 256 byte symbols, the
        same 256 as ends of words, the merges, START, END: 514 + merges in all.

        Pairs that are equally frequent may come in another order when it is learned again.
        """
        symbols = byte_symbols()
        learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
        start_vocab = {piece: i for i, piece in enumerate(cls._byte_pieces())}
        assembled = _assemble(
            models.BPE({**start_vocab, START: 512, END: 513}, [], end_of_word_suffix=END_OF_WORD),
            context_length,
            END,
        )
        learner.normalizer, learner.pre_tokenizer = assembled.normalizer, assembled.pre_tokenizer
        trainer = trainers.BpeTrainer(
            vocab_size=512 + merges, initial_alphabet=symbols, end_of_word_suffix=END_OF_WORD,
            show_progress=False,
        )  # fmt: skip
        learner.train_from_iterator(texts, trainer)
        learned = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:merges]
        pieces = [*cls._byte_pieces(), *("".join(pair) for pair in learned), START, END]
        vocab = {piece: i for i, piece in enumerate(pieces)}
        return cls.from_tables(vocab, learned, context_length)

    @staticmethod
    def _byte_pieces() -> list[str]:
        symbols = byte_symbols()
        return symbols + [symbol + END_OF_WORD for symbol in symbols]

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """Read the tokenizer.json that `save` wrote. Raises ValueError if it is none."""
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is no tokenizer.json of this library: {error}") from error

    def save(self, path: Path | str) -> None:
        """Write everything, tables and rules, into one tokenizer.json."""
        Path(path).write_text(self.backend.to_str(pretty=False), encoding="utf8")

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def tables(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """CLIP's two tables, as `from_tables` takes them; without added tokens."""
        model = json.loads(self.backend.to_str())["model"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        vocab = self.backend.get_vocab(with_added_tokens=False)
        return vocab, [(left, right) for left, right in merges]

    @property
    def added(self) -> dict[str, int]:
        """The tokens beyond CLIP's vocabulary and their ids, in the order of the ids."""
        tokens = sorted(self.backend.get_added_tokens_decoder().items())
        return {token.content: i for i, token in tokens if not token.special}

    def add(self, tokens: Sequence[str]) -> list[int]:
        """Add tokens that are never split; returns their ids, the next after the vocabulary's.

        As in transformers, they are found in upper and lower case and inside words.
        """
        self.backend.add_tokens([tokenizers.AddedToken(token) for token in tokens])
        return [self.backend.token_to_id(token) for token in tokens]

    def remove(self, tokens: Sequence[str]) -> None:
        """Forget added tokens; the ids of those that were added later move up."""
        kept = [token for token in self.added if token not in tokens]
        state = json.loads(self.backend.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["special"]]
        self.backend = tokenizers.Tokenizer.from_str(json.dumps(state))
        self.add(kept)

    def parts(self, token: str) -> list[str]:
        """The added tokens that an added token stands for: token, token_1, token_2, ..."""
        added, parts = self.added, [token]
        while f"{token}_{len(parts)}" in added:
            parts.append(f"{token}_{len(parts)}")
        return parts

    def expand(self, text: str) -> str:
        """The text with all parts of its added tokens, "<cat>" as "<cat> <cat>_1 <cat>_2"."""
        parts = {token.lower(): self.parts(token)[1:] for token in self.added}
        if not any(parts.values()):
            return text
        names = "|".join(re.escape(name) for name in sorted(parts, key=len, reverse=True))
        return re.sub(names, lambda m: " ".join([m[0], *parts.get(m[0].lower(), [])]), text,
                      flags=re.IGNORECASE)  # fmt: skip

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """One text or a list of b. Returns ids (b, 77), int64: START, the text, END, padding."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"a text is a {type(text).__name__}, expected a str: {text!r}")
        encoded = self.backend.encode_batch([self.expand(text) for text in texts])
        return torch.tensor([one.ids for one in encoded])

    def ids(self, text: str) -> list[int]:
        """The ids of a text without START, END and padding, uncut."""
        encoded = self.backend.encode(self.expand(text))
        return [
            i
            for part in [encoded, *encoded.overflowing]
            for i, special in zip(part.ids, part.special_tokens_mask)
            if not special
        ]

    def tokens(self, text: str) -> list[str]:
        """The pieces of a text as strings, without START, END and padding, uncut."""
        return [self.backend.id_to_token(i) for i in self.ids(text)]

    def cut(self, text: str) -> str:
        """The end of the text that did not fit into the context, "" if all of it did."""
        rest = self.ids(text)[self.context_length - 2 :]
        return self.backend.decode(rest).replace(END_OF_WORD, " ").strip()
