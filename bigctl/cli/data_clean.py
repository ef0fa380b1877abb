"""`bigctl data ... --clean`: prepared data is removed."""

from __future__ import annotations

import argparse
import glob
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.cache_root import cache_root
from bigctl.cli import render
from bigctl.files import disk_size
from bigctl.formatting import size

if TYPE_CHECKING:
    from bigctl.config.schema import Data


def clean(options: argparse.Namespace, config: Data, form: Mapping[str, Any]) -> int:
    """Remove every prepared form of a data set."""
    from bigctl.data import cache, catalog, taught
    from bigctl.data.pictures import sums

    plain = cache.cache_folder(config, regression=form["regression"])
    tokens = cache.cache_folder(config, **form)
    folders = [plain, *_forms(plain), *([tokens, *_forms(tokens)] if tokens != plain else [])]
    for part in catalog.parts(config).values():
        folders += [cache.cache_folder(part), *_forms(cache.cache_folder(part))]
    present = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    freed = cache.sweep_packs(present)
    said = {folder for each in present if (folder := taught.folder_of(each)) is not None and folder.is_dir()}
    present += sorted(said)  # by teachers of students on it
    for folder in present:
        sums.forget(folder)
        freed += disk_size(folder)
        shutil.rmtree(folder, ignore_errors=True)
        freed -= disk_size(folder)
    if options.json:
        render.print_json({"path": str(tokens), "freed_bytes": freed, "removed": [str(folder) for folder in present]})
    elif present:
        print(f"freed {size(freed)}: {', '.join(str(folder) for folder in present)}")
    else:
        print(f"nothing to remove: {tokens} is not there")
    return 0


def _forms(folder: Path) -> list[Path]:
    """Caches of the same data beside one: as other tokens, with a tokenizer that a run has kept, or half made."""
    name = glob.escape(folder.name)
    return sorted([*folder.parent.glob(f"{name}-*"), *folder.parent.glob(f".{name}*.partial")])


def clean_all(options: argparse.Namespace) -> int:
    """Remove all prepared data."""
    from bigctl.data import cache

    freed, folder = cache.clean_all(), cache_root() / "data"
    if options.json:
        render.print_json({"path": str(folder), "freed_bytes": freed})
    else:
        print(f"freed {size(freed)} in {folder}")
    return 0
