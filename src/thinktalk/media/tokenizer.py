"""Text in, token ids out, and back, from a checkpoint's tokenizer files (byte-level BPE).

Text never becomes a control token, whatever it spells: users' words, tool results and file names
are plain text. Only code that asks for a token by name, or marks its text as trusted, gets one.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

# How Qwen2 cuts text into pieces before merging: contractions, words with one leading sign, single
# digits, signs, line ends, spaces.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Encodes and decodes; knows the added tokens (`<|im_end|>`, ...) by name."""

    def __init__(
        self, plain: tokenizers.Tokenizer, *, added: dict[str, int], special: frozenset[str]
    ) -> None:
        """plain has no added tokens; special names those of them that decoding leaves out."""
        self._plain, self._added = plain, added
        names = sorted(map(re.escape, added), key=len, reverse=True)
        self._split = re.compile("|".join(names)) if names else re.compile(r"(?!)")
        self._bytes = {i: _token_bytes(token) for token, i in plain.get_vocab().items()}
        self._bytes |= {i: name.encode() for name, i in added.items()}
        self._silent = frozenset(added[name] for name in special)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json, or vocab.json, merges.txt and tokenizer_config.json instead.

        Raises ValueError if neither is there or the files contradict each other.
        """
        folder = Path(folder)
        config = _read(folder / "tokenizer_config.json")
        if (folder / "tokenizer.json").is_file():
            content = _read(folder / "tokenizer.json")
            found = content.get("added_tokens", [])
            # Padding, truncation and templates are the business of other programs.
            content |= {"added_tokens": [], "post_processor": None}
            content |= {"padding": None, "truncation": None}
            plain = tokenizers.Tokenizer.from_str(json.dumps(content))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            plain, found = _qwen2(folder), []
        else:
            raise ValueError(
                f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt "
                "is there; copy them from the checkpoint"
            )
        listed = {token["content"]: int(token["id"]) for token in found}
        special = {token["content"] for token in found if token.get("special")}
        for number, token in config.get("added_tokens_decoder", {}).items():
            if listed.setdefault(token["content"], int(number)) != int(number):
                raise ValueError(
                    f"{folder}: {token['content']} is {listed[token['content']]} in tokenizer.json "
                    f"but {number} in tokenizer_config.json; take both from the same checkpoint"
                )
            if token.get("special"):
                special.add(token["content"])
        for name, number in _read(folder / "added_tokens.json").items():
            listed.setdefault(name, int(number))
        return cls(plain, added=listed, special=frozenset(special))

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that has a text."""
        return max(self._bytes) + 1

    def id_of(self, name: str) -> int:
        """Return the id of an added token; ValueError if the checkpoint has none of that name."""
        if name not in self._added:
            raise ValueError(f"the tokenizer has no token {name}; is this a Qwen2.5-Omni one?")
        return self._added[name]

    def knows(self, name: str) -> bool:
        """True if there is an added token of that name."""
        return name in self._added

    def encode(self, text: str, *, trusted: bool = False) -> list[int]:
        """Return token ids. Only in trusted text do names of added tokens become these tokens."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
        if not trusted:
            return self._plain.encode(text, add_special_tokens=False).ids
        ids, end = [], 0
        for match in self._split.finditer(text):
            ids += self.encode(text[end : match.start()])
            ids.append(self._added[match.group()])
            end = match.end()
        return ids + self.encode(text[end:])

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Return the text of ids; special tokens are left out unless they shall be kept."""
        return b"".join(self.token_bytes(int(i), keep_special=keep_special) for i in ids).decode(
            "utf-8", "replace"
        )

    def token_bytes(self, token: int, *, keep_special: bool = False) -> bytes:
        """Return the UTF-8 bytes of one token: maybe a part of a character, maybe nothing."""
        if token in self._silent and not keep_special:
            return b""
        return self._bytes.get(token, b"")

    def incremental_decoder(self) -> IncrementalDecoder:
        """Return a decoder that takes ids one by one."""
        return IncrementalDecoder(self)


class IncrementalDecoder:
    """Ids in, text out as soon as it is certain; a character is never split.

    All pieces together equal Tokenizer.decode of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Return the characters that this token completes, often none or several."""
        return self._utf8.decode(self._tokenizer.token_bytes(int(token)))

    def finish(self) -> str:
        """Return what is left: a replacement sign if the last character is incomplete."""
        return self._utf8.decode(b"", final=True)


def _qwen2(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer that Qwen2's two files stand for."""
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    plain = tokenizers.Tokenizer(model)
    plain.normalizer = normalizers.NFC()
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    plain.decoder = decoders.ByteLevel()
    return plain


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy it again") from None


def _token_bytes(token: str) -> bytes:
    """Undo the alphabet of byte-level BPE, where every byte is written as a visible character."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        raise ValueError(f"token {token!r} is not byte-level BPE, the only kind read") from None


def _byte_alphabet() -> dict[str, int]:
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + number): byte for number, byte in enumerate(hidden)
    }


_BYTE_OF = _byte_alphabet()
