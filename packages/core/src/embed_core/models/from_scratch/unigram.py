"""A Unigram tokenizer (Kudo 2018, arXiv 1804.10959) of XLM-RoBERTa's shape, trained on the run's own texts."""

from __future__ import annotations

import heapq
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from embed_core.errors import ConfigError
from embed_core.protocols import Announce, SamplesTexts, provides
from embed_core.utils.atomic import replacing

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""Ids 0 to 3 are XLM-RoBERTa's; its ``<mask>`` is the last id, here it is 4."""
UNKNOWN_ID = 3
MAX_CHARACTERS = 2_000_000
"""Characters to train on, some 12 seconds of one core. On 6 million characters of Python documentation, 16,000 pieces
cut texts into 70.8 tokens with this much, 68.6 with twice as much in 30 seconds, 72.4 with half in 5."""
VERSION = "1"
"""Part of the cache key: raise it when the result changes."""


def unigram_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    cache_dir: Path,
    announce: Announce,
    *,
    max_length: int = 512,
    max_characters: int = MAX_CHARACTERS,
) -> Any:
    """A ``PreTrainedTokenizerFast`` of at most ``vocab_size`` pieces, truncating at ``max_length`` tokens.

    The same texts, in any order, give the same tokenizer on every machine. It is cached under
    ``cache_dir/tokenizers`` by a digest of the texts; callers with several ranks wrap the call in ``context.first()``.
    Raises ConfigError where there is no text, or ``vocab_size`` has no room for single characters.
    """
    kind = Kind("a Unigram tokenizer", f"unigram-{vocab_size}", VERSION)
    tokenizer = kept(kind, texts, vocab_size, cache_dir, announce, _train, max_characters)
    return _wrapped(tokenizer, max_length)


class Kind(NamedTuple):
    """A kind of tokenizer: its name in messages, its name in files, and the version of its training."""

    title: str
    name: str
    version: str


def kept(
    kind: Kind,
    texts: Iterable[str],
    vocab_size: int,
    cache_dir: Path,
    announce: Announce,
    train: Callable[[list[str], int], Tokenizer],
    max_characters: int,
) -> Tokenizer:
    """Train on a sample of ``texts``, or load the result of an earlier training from ``cache_dir/tokenizers``."""
    # A dataset that knows the hashes of its texts finds the same sample without reading all of them.
    if provides(texts, SamplesTexts):
        sample, digest = texts.sample(max_characters)
    else:
        sample, digest = _sample(texts, max_characters)
    key = blake2b(f"{kind.version}|{vocab_size}|{max_characters}|{digest}".encode(), digest_size=10).hexdigest()
    path = cache_dir / "tokenizers" / f"{kind.name}-{key}.json"
    tokenizer = _cached(path)
    if tokenizer is None:
        started = time.monotonic()
        tokenizer = train(sample, vocab_size)
        _store(tokenizer, path)
        announce(
            f"trained {kind.title} of {tokenizer.get_vocab_size():,} pieces on {len(sample):,} texts "
            f"in {time.monotonic() - started:.0f} s, kept as {path}"
        )
    return tokenizer


def _wrapped(tokenizer: Tokenizer, max_length: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=max_length,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def _sample(texts: Iterable[str], max_characters: int) -> tuple[list[str], str]:
    """The texts with the smallest digests, up to ``max_characters`` in all, and a digest of all the texts.

    Choosing by digest is independent of the order, and one pass needs no more memory than the sample.
    """
    total, size, bound = 0, 0, 1 << 64
    heap: list[tuple[int, str]] = []
    seen: set[int] = set()
    for text in texts:
        number = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        total = (total + number) % (1 << 128)
        if number >= bound or number in seen or not text.strip():
            continue
        seen.add(number)
        heapq.heappush(heap, (-number, text))
        size += len(text)
        while size > max_characters and len(heap) > 1:
            dropped, gone = heapq.heappop(heap)
            bound = -dropped  # larger digests are never taken from here on, so the order does not matter
            seen.discard(bound)
            size -= len(gone)
    if not heap:
        raise ConfigError(
            "the dataset has no text to train a from-scratch tokenizer on: "
            "check `data`, or name a model with `name_or_path`"
        )
    return [text for _, text in sorted(heap, reverse=True)], f"{total:032x}"


def _pipeline(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _train(texts: list[str], vocab_size: int) -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), unk_token="<unk>", show_progress=False
    )
    draft = _pipeline(Tokenizer(models.Unigram()))
    draft.train_from_iterator(_covered(texts, vocab_size), trainer)
    pieces = _canonical(json.loads(draft.to_str())["model"]["vocab"])
    if len(pieces) > vocab_size:
        raise ConfigError(
            f"vocab_size {vocab_size} is too small for a Unigram tokenizer: these texts need {len(pieces)} pieces at "
            "least, and thousands for good ones"
        )
    tokenizer = _pipeline(Tokenizer(models.Unigram(pieces, unk_id=UNKNOWN_ID)))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _covered(texts: list[str], vocab_size: int) -> list[str]:
    """The texts without the rarest characters where these would take more than half of the vocabulary.

    The trainer keeps every character it sees, and fails where they outnumber the pieces; a character left out is
    ``<unk>`` (SentencePiece calls the share of those that stay the character coverage).
    """
    normalise = normalizers.NFKC().normalize_str
    texts = [normalise(text) for text in texts]
    counts = Counter(character for text in texts for character in text)
    room = vocab_size // 2
    if len(counts) <= room:
        return texts
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    blank = str.maketrans(dict.fromkeys(frequent[room:], " "))
    return [text.translate(blank) for text in texts]


def _canonical(vocab: list[list[Any]]) -> list[tuple[str, float]]:
    """The trained pieces with scores that do not depend on the trainer's hash order.

    The trainer adds single characters that no piece covers at the end, with scores falling by 0.0001 in the random
    order of a hash map; all of them get the first of these scores here. Rounding removes the noise of summation.
    """
    special = [(token, 0.0) for token in SPECIAL_TOKENS]
    learned = [(str(piece), float(score)) for piece, score in vocab if piece not in SPECIAL_TOKENS]
    floor = min((score for piece, score in learned if len(piece) > 1), default=0.0)
    rare = [score for piece, score in learned if len(piece) == 1 and score < floor]
    top = max(rare, default=0.0)
    levelled = [(piece, round(top if len(piece) == 1 and s < floor else s, 6)) for piece, s in learned]
    return special + sorted(levelled, key=lambda pair: (-pair[1], pair[0]))


def _cached(path: Path) -> Tokenizer | None:
    """The cached tokenizer; None where there is no file or it cannot be read (a killed run, a full disk)."""
    try:
        return Tokenizer.from_file(str(path)) if path.is_file() else None
    except Exception:  # the Rust parser raises bare Exception
        return None


def _store(tokenizer: Tokenizer, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")
