"""A user's own images (`image_folder`): one folder a class, or one folder and a file of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.files.paths import file_digest, hidden, natural, optional, require_folder, some, walk
from bigctl.data.sources import image_index, labelled_images, listing
from bigctl.data.sources.decoded import Decoded, Origins
from bigctl.data.sources.image_decoding import AS_EVER, IMAGE_SUFFIXES, is_image_name, read_image
from bigctl.data.sources.image_index import USUAL, Wanted
from bigctl.data.sources.listing import Listing
from bigctl.data.sources.unlabelled import Unlabelled
from bigctl.errors import DataError
from bigctl.files import expanded

_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def identity(config: schema.ImageFolder) -> Any:
    """What the decoded arrays depend on: names, sizes and times of the files, and the keys that say what is in them."""
    listed, streamed = _listed(config)
    sizes = {"image_size": config.image_size, "channels": config.channels}
    later = {"on_bad": ("refuse",), "background": ("black",), "resize": AS_EVER}
    given = {name: value for name, usual in later.items() if (value := getattr(config, name)) not in usual}
    if streamed:
        given["streamed"] = [str(folder.absolute()) for path in _paths(config) if (folder := optional(path))]
    found = {"files": list(listed.prints), **sizes, **given}
    if config.labels_file is None:
        return found
    names = ("labels", "label_separator", "file_name", "split")
    labelled = {"labels_file": file_digest(config.labels_file)} | {name: getattr(config, name) for name in names}
    labelled |= {"encoding": config.encoding} if config.encoding is not None else {}
    return found | labelled


def _paths(config: schema.ImageFolder) -> tuple[str | None, ...]:
    return config.path, config.validation_path, config.test_path


def _listed(config: schema.ImageFolder) -> tuple[Listing, bool]:
    """What lies in the folders, and whether its pictures stay encoded. Those that do are known by their folders until
    they are read; of others each file is looked at, as they are not read again."""
    known = listing.recall(_paths(config)) if config.decoding != schema.DECODE_MEMORY else None
    if known is not None and _is_streamed(config, known):
        return known, True
    listed = listing.take(_paths(config))
    return listed, _is_streamed(config, listed)


def _is_streamed(config: schema.ImageFolder, listed: Listing) -> bool:
    if config.decoding is not None:
        return config.decoding == schema.DECODE_STREAM
    height, width = config.image_size or listed.first
    return listed.pictures * height * width * (config.channels or 3) > image_index.FEW


def decode(config: schema.ImageFolder, regression: bool) -> Decoded:
    """The images below a folder, with the classes that sub-folders or a file of labels say. Raises DataError."""
    size = (config.image_size[0], config.image_size[1]) if config.image_size else None
    folder = expanded(config.path)
    wanted = Wanted(
        size,
        config.channels,
        config.background,
        config.resize,
        skip_bad=config.on_bad == "skip",
        bad_limit=config.bad_limit,
        streamed=_listed(config)[1],
        listing=str(listing.place(_paths(config))),
    )
    if config.labels_file is None:
        validation, test = optional(config.validation_path), optional(config.test_path)
        return read_image_folder(folder, validation_path=validation, test_path=test, wanted=wanted)
    if config.validation_path or config.test_path:
        hint = "name the splits in a column of the file, data.split=COLUMN"
        raise DataError("data.labels_file is for one folder of images", where="data.labels_file", hint=hint)
    return labelled_images.read_labelled_images(
        folder,
        expanded(config.labels_file),
        labels=config.labels,
        separator=config.label_separator,
        file_name=config.file_name,
        split=config.split,
        encoding=config.encoding,
        wanted=wanted,
    )


def read_for_prediction(path: Path | bytes, config: schema.Data, features: Features) -> Unlabelled:
    """One picture, resized to what the model takes. Raises DataError."""
    height, width, channels = features.shape
    look = {"background": getattr(config, "background", "black"), "resize": getattr(config, "resize", "stretch")}
    return Unlabelled(read_image(path, (height, width), channels, **look)[None], rows=False)


def read_image_folder(
    path: Path,
    *,
    validation_path: Path | None = None,
    test_path: Path | None = None,
    wanted: Wanted = USUAL,
) -> Decoded:
    """Read a folder with one sub-folder a class; images may lie at any depth below it.

    Sub-folders `train`, `val|valid|validation` and `test` that hold class folders are taken as splits; otherwise
    everything is one split, "train". Classes are train's folder names in natural order ("2" before "10").

    Args:
        path: the folder.
        validation_path, test_path: folders of the same shape for the splits "validation" and "test".
        wanted: how the images are to be read.

    Returns:
        Decoded images, uint8 [N, H, W, C], or where they are, and labels, int32 [N], of each split, ordered by class,
        then by file name.

    Raises:
        DataError: a path is not such a folder, a class is empty or unknown to train, a file is not a readable image.
    """
    notes: list[str] = []
    folders = _split_folders(require_folder(path), notes)
    _add_folders(folders, path, {"validation": validation_path, "test": test_path})
    listed: dict[str, dict[str, list[Path]]] = {}
    ignored = 0
    for split, folder in folders.items():
        listed[split], skipped = _class_files(folder, notes)
        ignored += skipped
    classes = _classes(listed, folders)
    files = [file for by_class in listed.values() for class_files in by_class.values() for file in class_files]
    bad: dict[int, DataError] = {}
    images, index = image_index.read(files, [*folders.values()], wanted, bad)
    labels = {
        split: np.repeat([classes.index(name) for name in own], [len(found) for found in own.values()]).astype(np.int32)
        for split, own in listed.items()
    }
    splits = image_index.by_split(images, labels, bad)
    info: dict[str, Any] = {
        "source": "image_folder",
        "path": str(path),
        "images": {split: len(columns["label"]) for split, columns in splits.items()},
        "image_shape": list((images if index is None else index).shape[1:]),
        "ignored_files": ignored,
        **image_index.left_out(bad, len(files), notes),
    }
    return Decoded("image", splits, classes, info, origins=_origins(path, folders, listed, bad), index=index)


def _origins(
    path: Path, folders: dict[str, Path], listed: dict[str, dict[str, list[Path]]], bad: dict[int, DataError]
) -> Origins:
    """The path of each image below the folder that is given."""
    roots = {split: path if folder.parent == path else folder for split, folder in folders.items()}
    names = {
        split: [str(file.relative_to(roots[split])) for own in by_class.values() for file in own]
        for split, by_class in listed.items()
    }
    return image_index.origins(names, bad)


def _add_folders(folders: dict[str, Path], path: Path, given: dict[str, Path | None]) -> None:
    """Add the folders of further splits that are given by a key of their own."""
    for split, folder in given.items():
        if folder is None:
            continue
        if split in folders:
            raise DataError(
                f"{split} images are given twice: by data.{split}_path and by the folder {folders[split].name!r}",
                where=str(path),
                hint=f"give data.path={folders['train']}, or leave data.{split}_path out",
            )
        if folder.resolve() == path.resolve():
            raise DataError(f"data.{split}_path is the training folder itself", where=str(folder))
        folders[split] = require_folder(folder)


def _classes(listed: dict[str, dict[str, list[Path]]], folders: dict[str, Path]) -> tuple[str, ...]:
    """The classes, which those of training decide."""
    classes = tuple(listed["train"])
    if len(classes) == 1:
        raise DataError(
            f"there is only one class, {classes[0]!r}",
            where=str(folders["train"]),
            hint="a classifier needs at least two class folders",
        )
    for split, by_class in listed.items():
        if unknown := [name for name in by_class if name not in classes]:
            raise DataError(
                f"class {unknown[0]!r} is not among the training classes {some(classes)}",
                where=str(folders[split] / unknown[0]),
                hint="rename the folder, or add the class to the training images",
            )
    return classes


def _subfolders(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if entry.is_dir() and not hidden(entry.name)), key=natural)


def _split_folders(path: Path, notes: list[str]) -> dict[str, Path]:
    """The folder of each split; `path` itself is "train" where no sub-folder is a split."""
    folders = _subfolders(path)
    named: dict[str, Path] = {}
    for folder in folders:
        split = _SPLIT_FOLDERS.get(folder.name.lower())
        # A class may well be called "train": only folders of folders are splits.
        if split is None or not _subfolders(folder) or any(is_image_name(file) for file in folder.iterdir()):
            continue
        if split in named:
            raise DataError(
                f"{named[split].name!r} and {folder.name!r} would both be the {split} split",
                where=str(path),
                hint="remove or rename one of them",
            )
        named[split] = folder
    if "train" not in named:
        if named and len(named) == len(folders):
            raise DataError(
                f"there is no 'train' beside {some([folder.name for folder in folders])}",
                where=str(path),
                hint="name the folder with the training classes 'train'",
            )
        return {"train": path}
    for folder in (folder for folder in folders if folder not in named.values()):
        if any(is_image_name(file) for file in walk(folder)):
            raise DataError(
                f"{folder.name!r} has images but is neither a split made of class folders nor a class",
                where=str(path),
                hint=f"move it elsewhere, or name the splits yourself: data.path={named['train']}",
            )
        notes.append(f"{folder} holds no images and is ignored")
    return {split: named[split] for split in ("train", "validation", "test") if split in named}


def _class_files(folder: Path, notes: list[str]) -> tuple[dict[str, list[Path]], int]:
    """The image files of each class folder, in label order, and the number of other files."""
    loose = [entry for entry in folder.iterdir() if entry.is_file()]
    loose_images = sum(map(is_image_name, loose))
    classes = _subfolders(folder)
    if not classes:
        what = f"{loose_images} images lie directly in it" if loose_images else "it holds no images"
        raise DataError(
            f"there are no class folders; {what}",
            where=str(folder),
            hint="put the images of each class into a folder named after the class: FOLDER/CLASS/IMAGE.png",
        )
    if loose_images:
        notes.append(f"{loose_images} images lie directly in {folder}, in no class folder, and are ignored")
    found: dict[str, list[Path]] = {}
    ignored = len(loose)
    for folder_of_class in classes:
        if any("\ud800" <= character <= "\udfff" for character in folder_of_class.name):
            hint = "rename it: its name is that of a class"
            raise DataError("the name of the folder is not UTF-8", where=str(folder_of_class), hint=hint)
        everything = list(walk(folder_of_class))
        images = sorted(filter(is_image_name, everything), key=natural)
        ignored += len(everything) - len(images)
        if not images:
            others = f"{len(everything)} other files" if everything else "no files at all"
            raise DataError(
                f"class folder {folder_of_class.name!r} has no images ({others})",
                where=str(folder_of_class),
                hint=f"remove the folder, or add images: {' '.join(sorted(IMAGE_SUFFIXES))}",
            )
        found[folder_of_class.name] = images
    return found, ignored
