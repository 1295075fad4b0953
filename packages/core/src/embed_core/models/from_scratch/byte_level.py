"""A byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in GPT-2) of Qwen's shape, from the run's own texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from embed_core.models.from_scratch.unigram import MAX_CHARACTERS, Kind, kept
from embed_core.protocols import Announce

END_OF_TEXT = "<|endoftext|>"
"""The token that closes every text, from which a decoder's vector is read. It is also the padding token."""
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
SMALLEST = 256 + len(SPECIAL_TOKENS)
"""The smallest vocabulary: every byte is a piece, so that no text has an unknown one."""
VERSION = "1"
"""Part of the cache key: raise it when the result changes."""

# Contractions; words with the character before them; digits one by one; signs; line breaks; other white space.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    cache_dir: Path,
    announce: Announce,
    *,
    max_length: int = 512,
    max_characters: int = MAX_CHARACTERS,
) -> Any:
    """A ``PreTrainedTokenizerFast`` of at most ``vocab_size`` pieces (at least :data:`SMALLEST`) that ends every text
    with :data:`END_OF_TEXT`, truncated to ``max_length`` tokens or not.

    The same texts, in any order, give the same tokenizer on every machine. It is cached under
    ``cache_dir/tokenizers`` by a digest of the texts; callers with several ranks wrap the call in ``context.first()``.
    Raises ConfigError where there is no text.
    """
    assert vocab_size >= SMALLEST, f"{vocab_size} pieces have no room for {SMALLEST} bytes and special tokens"
    kind = Kind("a byte-level BPE tokenizer", f"byte-level-{vocab_size}", VERSION)
    tokenizer = kept(kind, texts, vocab_size, cache_dir, announce, _train, max_characters)
    return _wrapped(tokenizer, max_length)


def ending(tokenizer: Tokenizer, end: str) -> Tokenizer:
    """``tokenizer``, changed so that every text is closed with the token ``end``, which it must know."""
    place = tokenizer.token_to_id(end)
    assert place is not None, f"{end!r} is no token"
    template = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, place)]
    )
    before = tokenizer.post_processor
    tokenizer.post_processor = template if before is None else processors.Sequence([before, template])
    return tokenizer


def _train(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return ending(tokenizer, END_OF_TEXT)


def _wrapped(tokenizer: Tokenizer, max_length: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        padding_side="left",
        truncation_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
