"""What may be told of where a model or a data set came from."""

from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id


def is_repo_id(name: str) -> bool:
    """Whether a name can be that of a repo on the Hub; folders are not, and neither are names without a namespace."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not Path(name).exists()


def public_name(source: str) -> str:
    """What may be told of where something came from: the id of a repo, or the last part of a path."""
    if is_repo_id(source):
        return source
    return Path(source).name or Path(source).resolve().name
