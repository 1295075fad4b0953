"""Config files that come with a recipe: ``--config NAME`` finds them where no file of that name is here."""

from __future__ import annotations

from pathlib import Path

from embed_core.config.recipe import Recipe
from embed_core.errors import ConfigError

SUFFIXES = (".yaml", ".yml", ".json")


def shipped_configs(recipe: type[Recipe] | None) -> dict[str, Path]:
    """Name without suffix → file, of those that come with ``recipe``, in the order of their names."""
    folder = recipe.shipped() if recipe is not None else None
    if folder is None or not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES}


def find_config(given: str, recipe: type[Recipe] | None) -> Path:
    """What ``--config`` means: a file, which counts more, or the shipped config of that name, with or without suffix.

    Raises ConfigError, naming the shipped ones, for a name that is neither. A path with a folder in it, or anything
    where the recipe ships none, is answered as it is: reading it says what is wrong.
    """
    path = Path(given).expanduser()
    known = shipped_configs(recipe)
    if path.is_file() or path.name != given or not known:
        return path
    name = path.stem if path.suffix in SUFFIXES else given
    if name in known:
        return known[name]
    assert recipe is not None, "only a recipe ships configs"
    raise ConfigError(
        f"config {given!r} is no file here and none that recipe {recipe.name!r} ships: name a file, or one of: "
        f"{', '.join(known)}"
    )
