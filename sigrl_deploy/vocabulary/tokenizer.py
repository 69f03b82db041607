"""CLIP tokenisation of labels without torch or open_clip.

Cleaning (ftfy, HTML entities, white space, lower case) happens in Python. Splitting and byte-level BPE happen in the
`tokenizers` library, from a `tokenizer.json` whose split pattern names every code point by number. open_clip splits by
`\\p{L}` and `\\p{N}`, and every regex engine has its own version of the Unicode tables for those; a pattern without
such classes gives the same ids in every engine.
"""

import html
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.errors import BundleError, printable
from sigrl_deploy.files import read_bounded

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 26  # of a tokenizer's file
_END_OF_WORD = "</w>"
_START_OF_TEXT = "<start_of_text>"
_END_OF_TEXT = "<end_of_text>"
# open_clip ignores case when it splits. After lower-casing, the long s is the only character left that this reaches.
_LITERALS = "<[s\u017f]tart_of_text>|<end_of_text>|'[s\u017f]|'t|'re|'ve|'m|'ll|'d"


class Tokenizer:
    """Turns labels into the token ids that open_clip's `SimpleTokenizer` with `clean="lower"` gives them.

    Args:
        path: a `tokenizer.json` written by `write_clip_tokenizer`.
        context_length: tokens per label, at least 1.

    Raises:
        BundleError: the file is missing, damaged, or holds another tokenizer than CLIP's.
    """

    def __init__(self, path: str | os.PathLike[str], context_length: int) -> None:
        self.context_length = context_length
        self._model = _load(path)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Tokenise `texts` (a lone string counts as one text).

        Returns:
            int64 [N, context_length]: start of text, the tokens, end of text, zeros. A longer text is cut, and its last
            id is end of text; the log has a warning.
        """
        if isinstance(texts, str):
            texts = [texts]
        encodings = self._model.encode_batch([_clean(text) for text in texts])
        token_ids = np.zeros((len(encodings), self.context_length), dtype=np.int64)
        for row, encoding in zip(token_ids, encodings, strict=True):
            ids = encoding.ids
            row[: len(ids)] = ids[: len(row)]
            if len(ids) > len(row):
                row[-1] = ids[-1]
        for text, encoding in zip(texts, encodings, strict=True):
            if len(encoding.ids) > self.context_length:
                log.warning(
                    "%s has %d tokens; only the first %d are used", printable(text), len(encoding.ids), self.context_length
                )
        return token_ids


def write_clip_tokenizer(path: str | os.PathLike[str]) -> None:
    """Write CLIP's vocabulary, merges and split rule, as the installed open_clip has them, to `path`.

    Needs the `export` extra.

    Raises:
        OSError: `path` cannot be written.
    """
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import Regex, Tokenizer, pre_tokenizers, processors

    reference = SimpleTokenizer()
    tokenizer = Tokenizer(_bpe_model(reference))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_split_pattern()), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START_OF_TEXT} $A {_END_OF_TEXT}",
        special_tokens=[(_START_OF_TEXT, reference.sot_token_id), (_END_OF_TEXT, reference.eot_token_id)],
    )
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(tokenizer.to_str())


def _clean(text: str) -> str:
    if not (text.isascii() and text.isprintable()) or ";" in text:  # ftfy leaves other text as it is
        import ftfy

        text = ftfy.fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _load(path: str | os.PathLike[str]) -> Any:
    from tokenizers import Tokenizer

    remedy = "expected the tokenizer.json of a sigrl-deploy bundle; export the bundle again or restore the file"
    try:
        tokenizer = Tokenizer.from_buffer(read_bounded(Path(path), _MOST_BYTES))
    except Exception as error:  # the library raises nothing narrower
        reason = printable(" ".join(str(error).split()))
        raise BundleError(f"cannot read tokenizer {os.fspath(path)}: {reason}; {remedy}") from error
    if tokenizer.encode("").tokens != [_START_OF_TEXT, _END_OF_TEXT]:
        raise BundleError(f"{os.fspath(path)} holds another tokenizer than CLIP's; {remedy}")
    return tokenizer


def _bpe_model(reference: "SimpleTokenizer") -> Any:
    from tokenizers.models import BPE

    specials = (_START_OF_TEXT, _END_OF_TEXT)
    # The last symbol of every word carries the suffix, so that is how a merged literal ends too.
    vocabulary = {token + (_END_OF_WORD if token in specials else ""): i for token, i in reference.encoder.items()}
    merges = sorted(reference.bpe_ranks, key=reference.bpe_ranks.__getitem__)
    reference.cache.clear()  # it maps the special tokens to themselves and would hide how their text is merged
    for literal in specials:
        _append_literal(reference.bpe(literal).split(" "), vocabulary, merges)
    return BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_END_OF_WORD)


def _append_literal(pieces: list[str], vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Add merges, ranked after all others, that join the `pieces` of a special token's text into that token.

    The library's added tokens would match inside "!<start_of_text>", where open_clip sees "!<" and plain words. These
    merges grow from the left, and the first one joins "<" to a word, which the split leaves together nowhere else; so
    the ids of the intermediate steps, for which CLIP has no embedding, never come out.
    """
    joined = pieces[0]
    for piece in pieces[1:]:
        merges.append((joined, piece))
        joined += piece
        vocabulary.setdefault(joined, len(vocabulary))


@cache  # it goes through all of Unicode
def _split_pattern() -> str:
    import regex

    letters, number, others = (
        _code_points(regex.compile(character_class + "+", regex.IGNORECASE))
        for character_class in (r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]")
    )
    return f"{_LITERALS}|[{letters}]+|[{number}]|[{others}]+"


def _code_points(runs: Any) -> str:
    """Return the code points that the compiled pattern `runs` matches, as the ranges of a character class."""
    every_character = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    return "".join(rf"\x{{{ord(run[0]):x}}}-\x{{{ord(run[-1]):x}}}" for run in runs.findall(every_character))
