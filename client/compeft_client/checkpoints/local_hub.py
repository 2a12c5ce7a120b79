"""Base models in the local Hugging Face cache: nothing is ever downloaded."""

from pathlib import Path


def cached_base(name: str, revision: str | None = None) -> Path | None:
    """The folder of a model's newest or given revision in the cache, None if it has no configuration there or `name` is invalid."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:  # the extra `client` brings it
        return None
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except (ValueError, OSError):  # the name of a folder, or of nothing
        return None
    return Path(found).parent if isinstance(found, str) else None
