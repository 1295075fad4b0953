"""A random CLIP-shaped model, with a tokenizer of CLIP's kind trained on the captions of the run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_core.errors import ConfigError
from embed_core.utils.atomic import replacing
from embed_vision.models.config import ClipShape

if TYPE_CHECKING:
    from embed_core.config.context import BuildContext

VERSION = 2
START, END = "<|startoftext|>", "<|endoftext|>"
MOST_CHARACTERS = 5_000_000
"""Characters of the captions that the tokenizer is trained on, the first ones: splitting takes some seconds."""


def clip_from_scratch(shape: ClipShape, context: BuildContext) -> tuple[Any, Any]:
    """A random ``CLIPModel`` and its ``CLIPProcessor``, the same for the same captions and ``context.seed``.

    Raises ConfigError where the dataset has no text.
    """
    dataset = context.dataset()
    with context.first():
        tokenizer = clip_tokenizer(dataset.texts(), shape, context.cache_dir)
    return clip_model(shape, tokenizer, context.seed), clip_processor(shape, tokenizer)


def clip_tokenizer(texts: Iterable[str], shape: ClipShape, cache_dir: Path) -> Any:
    """A ``CLIPTokenizer``: byte-level pairs (Sennrich et al. 2016), lower case, so every script can be read.

    It is cached under ``cache_dir`` by captions and size.
    """
    sample = _sample(texts)
    facts = f"{VERSION}|{shape.vocab_size}|" + "\n".join(sorted(sample))
    key = blake2b(facts.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()
    path = cache_dir / "tokenizers" / f"clip-{shape.vocab_size}-{key}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the file is missing, or was left by a killed run
        kept = _trained(sample, shape.vocab_size)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(kept), encoding="utf-8")
    from transformers import CLIPTokenizer

    merges = [tuple(pair) for pair in kept["merges"]]
    return CLIPTokenizer(vocab=kept["vocab"], merges=merges, model_max_length=shape.max_length)


def _sample(texts: Iterable[str]) -> list[str]:
    sample, size = [], 0
    for text in texts:
        if size >= MOST_CHARACTERS:
            break
        if text.strip():
            sample.append(text)
            size += len(text)
    if not sample:
        raise ConfigError(
            "the dataset has no caption to train a from-scratch tokenizer on: check `data`, or name a model with "
            "`name_or_path`"
        )
    return sample


def _trained(sample: list[str], vocab_size: int) -> dict[str, Any]:
    """Merges and ids: single bytes, bytes that end a word, pairs by frequency, two special tokens, as in CLIP."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    pipeline = CLIPTokenizer().backend_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The trainer numbers unknown characters in the order of a hash map, and breaks ties by number, which gives
    # another tokenizer every time. So ends of words are characters of their own in the initial alphabet.
    ends = {letter: chr(0xE000 + number) for number, letter in enumerate(letters)}
    draft = Tokenizer(models.BPE())
    draft.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, initial_alphabet=[*letters, *ends.values()], show_progress=False
    )

    def words(text: str) -> Iterable[str]:
        pieces = pipeline.pre_tokenizer.pre_tokenize_str(pipeline.normalizer.normalize_str(text))
        return (piece[:-1] + ends[piece[-1]] for piece, _ in pieces)

    draft.train_from_iterator((" ".join(words(text)) for text in sample), trainer)
    back = str.maketrans({end: f"{letter}</w>" for letter, end in ends.items()})
    merges = [[part.translate(back) for part in pair] for pair in json.loads(draft.to_str())["model"]["merges"]]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return {"vocab": {piece: number for number, piece in enumerate(pieces)}, "merges": merges}


def clip_processor(shape: ClipShape, tokenizer: Any) -> Any:
    """A processor that scales the shorter side, crops the middle and normalises with CLIP's colours."""
    from embed_core.utils.logging import quiet_transformers

    with quiet_transformers():  # it would warn that without torchvision it uses Pillow
        from transformers import CLIPImageProcessor, CLIPProcessor

        side = shape.image_size
        image_processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)


def clip_model(shape: ClipShape, tokenizer: Any, seed: int) -> Any:
    """A random ``CLIPModel`` in training mode."""
    from transformers import CLIPConfig, CLIPModel

    from embed_core.models.from_scratch.encoder import seeded

    towers = {
        "hidden_size": shape.hidden,
        "intermediate_size": 4 * shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "projection_dim": shape.width,
    }
    config = CLIPConfig(
        text_config=towers
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": shape.max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=towers | {"image_size": shape.image_size, "patch_size": shape.patch_size},
        projection_dim=shape.width,
    )
    with seeded(seed):
        return CLIPModel(config).train()
