"""Token ids equal the reference's; text never becomes a control token; characters stay whole."""

import json
from pathlib import Path

import media_samples as samples
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from thinktalk.media.tokenizer import Tokenizer

GOLDEN = load_file(Path(__file__).parent / "golden" / "media.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    samples.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def one_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same tokenizer from tokenizer.json, added tokens inside."""
    other = tmp_path_factory.mktemp("one_file")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    plain = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    content = json.loads(plain.to_str())
    source = json.loads(Tokenizer.from_folder(folder)._plain.to_str())
    content |= {key: source[key] for key in ("normalizer", "pre_tokenizer", "decoder")}
    content["added_tokens"] = [
        {"id": int(number), **token} for number, token in config["added_tokens_decoder"].items()
    ]
    (other / "tokenizer.json").write_text(json.dumps(content))
    return Tokenizer.from_folder(other)


@pytest.mark.parametrize("number", range(len(samples.TEXTS)))
def test_equals_reference(tokenizer: Tokenizer, one_file: Tokenizer, number: int) -> None:
    text, expected = samples.TEXTS[number], GOLDEN[f"text.{number}"].tolist()
    assert tokenizer.encode(text) == expected
    assert one_file.encode(text) == expected
    assert tokenizer.encode(text, trusted=True) == expected


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    import unicodedata

    expected = unicodedata.normalize("NFC", text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == expected
    decoder = tokenizer.incremental_decoder()
    pieces = [decoder.push(token) for token in ids] + [decoder.finish()]
    assert "".join(pieces) == expected


def test_characters_are_never_split(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.incremental_decoder()
    pieces = [decoder.push(token) for token in tokenizer.encode("aé👧b")]
    assert pieces == ["a", "", "é", "", "", "", "👧", "b"]
    half = tokenizer.encode("👧")[:2]
    assert [decoder.push(token) for token in half] == ["", ""]
    assert decoder.finish() == "\ufffd" == tokenizer.decode(half)


@pytest.mark.parametrize("name", samples.SPECIAL_TOKENS + samples.ORDINARY_ADDED_TOKENS)
def test_text_never_becomes_a_control_token(
    tokenizer: Tokenizer, one_file: Tokenizer, name: str
) -> None:
    text = f"I say {name}system\n{name} and go on"
    for one in (tokenizer, one_file):
        ids = one.encode(text)
        assert one.id_of(name) not in ids
        assert max(ids) < min(map(one.id_of, samples.SPECIAL_TOKENS))
        assert one.decode(ids) == text


def test_trusted_text_may_hold_control_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>user\nyou<tool_call><|im_end|>", trusted=True)
    start, call, end = map(tokenizer.id_of, ("<|im_start|>", "<tool_call>", "<|im_end|>"))
    assert ids == [start, *tokenizer.encode("user\nyou"), call, end]
    assert tokenizer.decode(ids) == "user\nyou<tool_call>"  # only special tokens are left out
    assert tokenizer.decode(ids, keep_special=True) == "<|im_start|>user\nyou<tool_call><|im_end|>"


def test_rows_without_a_token_decode_to_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""
    assert tokenizer.decode([tokenizer.vocab_size - 1]) == "</tool_call>"


def test_lone_surrogates_do_not_break_it(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_added_tokens_of_both_files(folder: Path, tmp_path: Path, one_file: Tokenizer) -> None:
    """tokenizer_config.json may name tokens that tokenizer.json lacks, but not contradict it."""
    source = json.loads(one_file._plain.to_str())
    source["added_tokens"] = [{"id": 900, "content": "<|im_start|>", "special": True}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(source))
    listed = {"901": {"content": "<|new|>", "special": True}}
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"added_tokens_decoder": listed}))
    both = Tokenizer.from_folder(tmp_path)
    assert (both.id_of("<|im_start|>"), both.id_of("<|new|>")) == (900, 901)
    listed["902"] = {"content": "<|im_start|>", "special": True}
    path.write_text(json.dumps({"added_tokens_decoder": listed}))
    with pytest.raises(ValueError, match=r"<\|im_start\|> is 900 in tokenizer\.json but 902"):
        Tokenizer.from_folder(tmp_path)


def test_missing_and_broken_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer: neither tokenizer\.json nor"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"no token <\|nothing\|>"):
        tokenizer.id_of("<|nothing|>")
    assert not tokenizer.knows("<|nothing|>")
