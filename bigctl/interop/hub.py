"""Models on the Hugging Face hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bigctl import terminal
from bigctl.errors import DataError

_HUB_FILES = ["config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json", "vocab.txt"]
_HUB_FILES += ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"]
_HUB_FILES += ["vocab.json", "merges.txt", "preprocessor_config.json"]


def fetch_folder(name: str) -> Path:
    """The folder of a model on the Hugging Face hub: as it was fetched before, else fetched now.

    `ORG/NAME@REVISION` names a branch, tag or commit.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = name.partition("@")
    wanted: dict[str, Any] = {"revision": revision or None, "allow_patterns": _HUB_FILES}
    try:
        here = Path(huggingface_hub.snapshot_download(repository, local_files_only=True, **wanted))
        if (here / "config.json").is_file() and any(here.glob("model*.safetensors")):
            return here
    except Exception:  # not here, or not all of it
        pass
    print(f"weights: fetching {name} from the Hugging Face hub", file=sys.stderr, flush=True)
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    try:
        with terminal.drawing():
            return Path(huggingface_hub.snapshot_download(repository, **wanted))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise DataError(
            "there is no such model on the Hugging Face hub, and no such folder or run here; or it is not public",
            where=f"model.init_from={name}",
            hint="check the name; for one that is not public: hf auth login",
        ) from error
    except Exception as error:  # whatever the network can do
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"cannot be fetched from the Hugging Face hub, and is no folder or run here: {reason}",
            where=f"model.init_from={name}",
            hint="with a network once, it is then found offline; or give the path of a folder with its files",
        ) from error
