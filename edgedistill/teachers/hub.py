"""A teacher on the Hugging Face hub, by id; only safetensors, JSON and vocabulary files are fetched."""

from __future__ import annotations

import os
from pathlib import Path

from edgedistill.errors import TeacherError
from edgedistill.specs import TeacherSource
from edgedistill.teachers._files import Located, locate_folder

PATTERNS = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
PATTERNS += ["vocab.txt", "vocab.json", "merges.txt", "*.model"]


def locate(source: TeacherSource) -> Located | None:
    """The snapshot in the local hub cache, fetched when the hub can be reached; None when it cannot.

    Raises:
        TeacherError: if the hub answers that the model does not exist or may not be read.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(source.name, revision=source.revision or None, allow_patterns=PATTERNS)
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        raise TeacherError(f"hub id {source.name!r}: {str(error).splitlines()[0]}") from None
    except (LocalEntryNotFoundError, OSError):
        return None  # offline and not in the cache
    return locate_folder(source, Path(folder))
