"""Processors of vision-language models without a video part, which transformers cannot build without torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VIDEO = "video_processor"
VIDEO_FILE = "video_preprocessor_config.json"


def video_kind(directory: Path) -> Any:
    """The processor class of the model in ``directory``, if it has a video part; else ``None``."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        kind = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(directory))]
    except (KeyError, OSError, ValueError):
        return None
    return kind if VIDEO in kind.get_attributes() else None


def without_video(kind: Any, image_processor: Any, tokenizer: Any, chat_template: str | None) -> Any:
    """A processor of class ``kind`` for texts and pictures; it is saved under the name of ``kind``."""

    class Still(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(None) if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    made = Still(
        image_processor=image_processor, tokenizer=tokenizer, video_processor=None, chat_template=chat_template
    )
    parts = [part for part in kind.get_attributes() if part != VIDEO]
    Still.get_attributes = classmethod(lambda cls: parts)  # only now: the constructor checks with it
    Still.__name__ = kind.__name__
    return made


def keep_video(source: Path, directory: Path) -> None:
    """Copy the video settings of the model directory ``source`` into ``directory``, whose processor has none."""
    path = directory / "processor_config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    for name in (VIDEO_FILE, "processor_config.json", "preprocessor_config.json"):
        facts = json.loads((source / name).read_text(encoding="utf-8")) if (source / name).is_file() else {}
        facts = facts.get(VIDEO) if name == "processor_config.json" else facts
        if facts and VIDEO not in saved:
            path.write_text(json.dumps(saved | {VIDEO: facts}, indent=2) + "\n", encoding="utf-8")
            return
