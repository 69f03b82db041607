"""Token-for-token comparison with open_clip's `SimpleTokenizer`, which shares no code with the runtime's tokenizer."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from sigrl_deploy.errors import BundleError
from sigrl_deploy.vocabulary.tokenizer import Tokenizer, write_clip_tokenizer
from tests.support.paths import ROOT

CONTEXT_LENGTH = 77
REFERENCE = SimpleTokenizer()
# Long blocks of characters that behave alike, of which every 17th stands for all.
UNIFORM_BLOCKS = (range(0x3400, 0xA000), range(0xAC00, 0xD7A4), range(0xE000, 0xF900))
APOSTROPHES = "'s 'S 't 'RE 've 'm 'LL 'd 'ſ ’s s' '"
ENTITIES = "&amp; &amp;lt; &lt;start_of_text&gt; &#8217; &#x1F600; &nbsp; &#1; &#xD800; &notit; &#133; &#38;#38;amp;"
SPECIALS = "<start_of_text> <END_of_text> <end_of_text> <ſtart_of_text> <start_of_textſ> <start <end _of_text> </w>"
MOJIBAKE = "â€™ Ã© ðŸ˜€ â€œquoted\u201d"
CASES = "İ \u212a ſ ŉ ǰ ΑΣ Σ ﬅ ß é e\u0301 n\u0303 \u0345"
SCRIPTS = "½ Ⅳ ² ٣ १ 日本 한국 ไทย 👩\u200d👩\u200d👧 🇩🇪 👍🏽 𝒜 𝟘"
CONTROLS = "\x00_\x07_\x1b[31m_\x7f_\ue000_\ufffd_\U0010ffff"
WHITE_SPACE = " _  _\t_\n_\r\n_\x0b_\x1c_\x1f_\x85_\xa0_\u2028_\u3000_\u200b_\ufeff"
SNIPPETS = [
    *" ".join((APOSTROPHES, ENTITIES, SPECIALS, MOJIBAKE, CASES, SCRIPTS)).split(" "),
    *CONTROLS.split("_"),
    *WHITE_SPACE.split("_"),
]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tokenizer.json"
    write_clip_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer(tokenizer_path, CONTEXT_LENGTH)


def assert_same_ids(tokenizer: Tokenizer, texts: list[str]) -> None:
    actual = tokenizer(texts)
    expected = REFERENCE(texts, context_length=tokenizer.context_length).numpy()
    assert actual.dtype == np.int64
    assert actual.shape == expected.shape
    different = np.flatnonzero((actual != expected).any(axis=1))
    assert not different.size, [(ascii(texts[i]), actual[i], expected[i]) for i in different[:3]]


def in_contexts(code_point: int) -> str:
    character = chr(code_point)
    return f"{character} a{character}B !{character}! '{character}2"


def random_texts(pieces: list[str], count: int, longest: int) -> list[str]:
    generator = random.Random(20240607)
    return ["".join(generator.choices(pieces, k=generator.randint(0, longest))) for _ in range(count)]


def test_every_bmp_character(tokenizer: Tokenizer) -> None:
    uniform = {code_point for block in UNIFORM_BLOCKS for code_point in block if code_point % 17}
    surrogates = range(0xD800, 0xE000)
    # Unassigned ones are included: the regex engines disagree on which of those newer Unicode versions have assigned.
    texts = [in_contexts(code) for code in range(0x10000) if code not in uniform and code not in surrogates]
    assert len(texts) > 20_000
    assert_same_ids(tokenizer, texts)


def test_astral_characters(tokenizer: Tokenizer) -> None:
    planes = (*range(0x10000, 0x20000, 11), *range(0x20000, 0x33500, 101), *range(0xE0000, 0xE0200, 3))
    assert_same_ids(tokenizer, [in_contexts(code) for code in (*planes, *range(0x1F300, 0x1FB00, 2))])


@pytest.mark.parametrize(("longest", "separator"), [(3, ""), (12, ""), (6, "a"), (6, " ")])
def test_mixtures_of_difficult_pieces(tokenizer: Tokenizer, longest: int, separator: str) -> None:
    assert_same_ids(tokenizer, random_texts([piece + separator for piece in SNIPPETS], 1500, longest))


def test_words_that_merge_in_many_ways(tokenizer: Tokenizer) -> None:
    assert_same_ids(tokenizer, random_texts(list("aaeehiloorstABTN '-."), 3000, 60))
    assert_same_ids(tokenizer, [piece * count for piece in ("ha", "aab", "!", "=-", "日", "zo") for count in range(1, 90)])


def test_words_of_the_vocabulary(tokenizer: Tokenizer) -> None:
    words = [token.removesuffix("</w>") for token in REFERENCE.encoder]
    assert_same_ids(tokenizer, [" ".join(words[start : start + 20]) for start in range(0, len(words), 20)])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(), max_size=4))
def test_any_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert_same_ids(tokenizer, texts)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_any_plain_text(tokenizer: Tokenizer, text: str) -> None:
    assert_same_ids(tokenizer, [text])
    if ";" not in text:
        assert ftfy.fix_text(text) == text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=3), max_size=12).map("".join))
def test_any_text_around_difficult_pieces(tokenizer: Tokenizer, text: str) -> None:
    assert_same_ids(tokenizer, [text])


@pytest.mark.parametrize("context_length", [1, 2, 3, 16, 300])
def test_other_context_lengths(tokenizer_path: Path, context_length: int) -> None:
    # Around each length there is a text that just fits and one that is just too long.
    texts = [" ".join(["dog"] * count) for count in (0, 1, 2, 13, 14, 15, 297, 298, 299, 1000)]
    assert_same_ids(Tokenizer(tokenizer_path, context_length), texts)


def test_long_text_ends_with_end_of_text(tokenizer: Tokenizer) -> None:
    (row,) = tokenizer(["cat " * 100])
    assert row.tolist() == [49406, *[2368] * 75, 49407]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("<start_of_text>", [49406]),
        ("a<END_OF_TEXT>cat", [320, 49407, 2368]),
        ("&lt;end_of_text&gt;", [49407]),
        ("<end_of_text><start_of_text>", [49407, 49406]),
    ],
)
def test_special_token_literals(tokenizer: Tokenizer, text: str, expected: list[int]) -> None:
    (row,) = tokenizer([text])
    assert row[: len(expected) + 2].tolist() == [49406, *expected, 49407]
    assert_same_ids(tokenizer, [text])


@pytest.mark.parametrize("text", ["!<start_of_text>", "<<end_of_text>", "<ſtart_of_text>", "<start_of_tex", "<start of text>"])
def test_what_only_resembles_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    (row,) = tokenizer([text])
    assert (row >= 49406).sum() == 2
    assert_same_ids(tokenizer, [text])


def test_a_lone_string_is_one_text(tokenizer: Tokenizer) -> None:
    np.testing.assert_array_equal(tokenizer("red car"), REFERENCE("red car").numpy())


def test_no_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer([]).shape == (0, CONTEXT_LENGTH)


def test_lone_surrogates(tokenizer: Tokenizer) -> None:
    assert_same_ids(tokenizer, ["a\ud800b", "\ud83d\ude00", "\udcff"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"{}",
        lambda content: b"\xff\xfe",
        lambda content: content[:-1000],
        lambda content: content.replace(b'"cat</w>":', b'"dropped</w>":'),
        lambda content: json.dumps({**json.loads(content), "post_processor": None}).encode(),
    ],
)
def test_a_damaged_file(tokenizer_path: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(damage(tokenizer_path.read_bytes()))
    assert_refused(path)


def test_a_missing_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "tokenizer.json")


def assert_refused(path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        Tokenizer(path, CONTEXT_LENGTH)
    message = str(caught.value)
    assert str(path) in message
    assert "expected the tokenizer.json" in message
    assert "export the bundle again" in message
    assert "\n" not in message


def test_the_runtime_needs_no_torch(tokenizer_path: Path) -> None:
    script = (
        "import sys; from sigrl_deploy.vocabulary.tokenizer import Tokenizer\n"
        "assert not {'ftfy', 'tokenizers'} & set(sys.modules)\n"
        "Tokenizer(sys.argv[1], 77)(['cat'])\n"
        "assert not {'torch', 'open_clip', 'regex'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tokenizer_path)], check=True, cwd=ROOT)


def test_a_warning_where_a_text_is_cut(tokenizer_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer(tokenizer_path, 8)
    tokenizer(["a b c d e f"])  # eight tokens with both ends
    assert caplog.messages == []
    tokenizer(["a cat", "a b c d e f g"])
    assert caplog.messages == ["a b c d e f g has 9 tokens; only the first 8 are used"]
