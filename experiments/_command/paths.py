"""Output stays in its folder, whatever a config says."""

from pathlib import Path, PurePath

from experiments._command.config import ConfigError


def inside(folder: Path, name: str, *, field: str) -> Path:
    """The path of `name` within `folder`.

    Symbolic links are followed first: one that leads out of the folder is refused. The
    folder itself is the user's choice, and may be a link.

    Args:
        folder: where output goes.
        name: a relative path from a config.
        field: the config's field that it comes from, for the message.

    Raises:
        ConfigError: if the path is absolute or leaves the folder.
    """
    if "\0" in name or not name:
        msg = f"{field} = {name!r}: is no file's name"
        raise ConfigError(msg)
    parts = PurePath(name).parts
    path = folder / name
    outside = not path.resolve().is_relative_to(folder.resolve())
    if PurePath(name).is_absolute() or ".." in parts or outside:
        msg = f"{field} = {name!r}: must be a path inside the folder {folder}"
        raise ConfigError(msg)
    if path.resolve() == folder.resolve() or path.is_dir():
        msg = f"{field} = {name!r}: must name a file, not a folder"
        raise ConfigError(msg)
    return path
