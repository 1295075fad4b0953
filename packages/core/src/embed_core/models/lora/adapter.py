"""Saves and loads adapters: peft's own directory, and beside it the weights trained outside the adapted encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor, nn

from embed_core.errors import CheckpointError, ConfigError, did_you_mean
from embed_core.export.layout import TransformersModel, write_modules, write_tokenizer
from embed_core.export.model_card import CardText, RunCard, write_card
from embed_core.models.lora.config import LoraModelConfig
from embed_core.protocols import Announce
from embed_core.utils.messages import one_line

SETTINGS = "adapter_config.json"
HEADS = "heads.safetensors"
"""Trained parameters outside the adapted encoders, by the inner model's names."""


def write(inner: Any, handles: Mapping[str, Any], directory: Path, card: RunCard) -> None:
    """Write peft's files of each encoder (in a folder of its name if there are several), the heads, the tokenizer and,
    where the inner model is laid out like a sentence-transformers model, the files that make it one."""
    from safetensors.torch import save_file

    for name, handle in handles.items():
        # "auto" would ask the model hub for the size of the base's vocabulary.
        handle.save_pretrained(str(_place(directory, name, handles)), save_embedding_layers=False)
    heads = _heads(inner, handles)
    if heads:
        save_file({name: value.detach().contiguous() for name, value in heads.items()}, directory / HEADS)
    if getattr(inner, "tokenizer", None) is not None:
        write_tokenizer(inner.tokenizer, directory)
    complete = len(handles) == 1 and all(hasattr(inner, name) for name in get_type_hints(TransformersModel))
    if complete:
        write_modules(inner, int(inner.encoder.config.hidden_size), directory)
    write_card(directory, card, _card_text(handles, card, heads=bool(heads), complete=complete))


def read_settings(config: LoraModelConfig, wanted: Mapping[str, tuple[nn.Module, Any]]) -> dict[str, Any]:
    """peft's settings of the saved adapter, per encoder, with the dropout of ``config``.

    ``wanted`` has each encoder and the settings that ``config`` means there. Raises CheckpointError for a directory
    that holds no LoRA adapter and ConfigError where ``config`` says otherwise than the adapter, naming both.
    """
    assert config.adapter is not None
    found: dict[str, Any] = {}
    differences: dict[str, str] = {}
    for name, (root, settings) in wanted.items():
        saved = _read(_place(config.adapter, name, wanted))
        differences |= _differences(config, root, saved, settings)
        saved.lora_dropout = config.dropout
        saved.inference_mode = False
        saved.base_model_name_or_path = settings.base_model_name_or_path
        saved.revision = settings.revision
        found[name] = saved
    if differences:
        listed = ", ".join(f"model.{key} to {value}" for key, value in differences.items())
        raise ConfigError(f"model.adapter: {str(config.adapter)!r} was made with other settings: set {listed}")
    return found


def load(path: Path, inner: nn.Module, handles: Mapping[str, Any], announce: Announce) -> None:
    """Load the saved weights into ``inner``. Raises CheckpointError where they are missing or do not fit."""
    for name, handle in handles.items():
        _load_adapter(_place(path, name, handles), handle)
    heads = {name: p for name, p in _heads(inner, handles).items() if p.requires_grad}
    file = path.expanduser() / HEADS
    if not file.is_file():
        if heads:
            announce(
                f"adapter {str(path)!r} has no {HEADS}: {', '.join(sorted(heads))} stay as the inner model has them"
            )
        return
    saved = _tensors(file)
    known = dict(inner.named_parameters())
    for name, value in saved.items():
        if name not in known or known[name].shape != value.shape:
            what = "no such weight" if name not in known else f"one of shape {list(known[name].shape)}"
            raise CheckpointError(
                f"{file}: {name} of shape {list(value.shape)} does not fit the inner model, which has {what}: "
                "use the model.inner that it was trained with"
            )
        known[name].data.copy_(value)


def _place(directory: Path, name: str, among: Mapping[str, Any]) -> Path:
    place = directory.expanduser()
    return place / name if len(among) > 1 else place


def _heads(inner: nn.Module, handles: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """Trained parameters of ``inner`` outside the adapted encoders."""
    inside = {id(p) for handle in handles.values() for p in handle.parameters()}
    return {name: p for name, p in inner.named_parameters() if p.requires_grad and id(p) not in inside}


def _read(directory: Path) -> Any:
    from peft import LoraConfig, PeftConfig

    file = directory / SETTINGS
    if not file.is_file():
        beside = [p.parent.name for p in directory.parent.glob(f"*/{SETTINGS}")] if directory.parent.is_dir() else []
        raise CheckpointError(
            f"model.adapter: {str(directory)!r} holds no {SETTINGS}: give a directory that `export: adapter` or peft "
            f"wrote ({did_you_mean(directory.name, beside)})"
        )
    try:
        settings = PeftConfig.from_pretrained(str(directory))
    except Exception as error:  # JSON's, peft's KeyError, TypeError and ValueError
        raise CheckpointError(
            f"{file}: cannot be read ({type(error).__name__}: {one_line(error, 160)}): copy it again"
        ) from None
    if not isinstance(settings, LoraConfig):
        raise CheckpointError(f"{file}: an adapter of type {settings.peft_type.value}, not LORA: give a LoRA adapter")
    return settings


def _differences(config: LoraModelConfig, root: nn.Module, saved: Any, wanted: Any) -> dict[str, str]:
    """Keys of ``config`` that differ from the adapter, with the adapter's value."""
    from peft.tuners.tuners_utils import check_target_module_exists

    pairs = {
        "r": (saved.r, config.r),
        "alpha": (saved.lora_alpha, config.alpha),
        "use_rslora": (saved.use_rslora, config.use_rslora),
        "use_dora": (saved.use_dora, config.use_dora),
        "modules_to_save": (sorted(saved.modules_to_save or ()), sorted(config.modules_to_save)),
    }
    found = {key: _written(theirs) for key, (theirs, ours) in pairs.items() if theirs != ours}
    kept = {name for name, _ in root.named_modules() if check_target_module_exists(saved, name)}
    if kept != {name for name, _ in root.named_modules() if check_target_module_exists(wanted, name)}:
        targets = saved.target_modules
        found["target_modules"] = _written(targets if isinstance(targets, str) else sorted(targets))
    return found


def _written(value: object) -> str:
    """Show a value as YAML does."""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _load_adapter(directory: Path, handle: Any) -> None:
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    try:
        saved = load_peft_weights(str(directory), device="cpu")
        expected = get_peft_model_state_dict(handle, save_embedding_layers=False)
        if saved.keys() != expected.keys():
            odd = sorted(saved.keys() ^ expected.keys())
            raise ValueError(f"{len(odd)} weights are missing or too many, {odd[0]} first")
        set_peft_model_state_dict(handle, saved)
    except Exception as error:  # peft's ValueError, torch's RuntimeError, SafetensorError, OSError
        raise CheckpointError(
            f"adapter {str(directory)!r} does not fit model.inner ({one_line(error, 200)}): "
            "use the base model that it was trained on"
        ) from None


def _tensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(file)
    except Exception as error:  # SafetensorError, OSError
        raise CheckpointError(f"{file}: cannot be read ({type(error).__name__}: {error}): copy it again") from None
    return tensors


@dataclass(frozen=True)
class _Code:
    base: str
    folder: str

    def __str__(self) -> str:
        return f"""\
from peft import PeftModel
from transformers import AutoModel

encoder = AutoModel.from_pretrained({self.base!r})
encoder = PeftModel.from_pretrained(encoder, "path/to/this/directory{self.folder}")
"""


def _card_text(handles: Mapping[str, Any], card: RunCard, *, heads: bool, complete: bool) -> CardText:
    codes = [
        _Code(str(h.peft_config["default"].base_model_name_or_path), f"/{name}" if len(handles) > 1 else "")
        for name, h in handles.items()
    ]
    loaders = {"peft": "\n".join(map(str, codes))}
    if complete:
        loaders["sentence-transformers"] = (
            "from sentence_transformers import SentenceTransformer\n\n"
            'model = SentenceTransformer("path/to/this/directory")  # loads the base model too\n'
        )
    notes = [f"A LoRA adapter: it needs its base model, `{card.base_model}`."]
    if heads:
        notes.append(f"`{HEADS}` holds what was trained outside the encoder; `model.adapter` of embed reads it back.")
    return CardText(
        title=card.name,
        summary="A LoRA adapter for a text embedding model, trained with [embed](https://pypi.org/project/embed-core/).",
        tags=("feature-extraction", "sentence-similarity", "lora", "peft"),
        loaders=loaders,
        notes=tuple(notes),
    )
