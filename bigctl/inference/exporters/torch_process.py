"""The process that reads a folder by the library it is for: `python -m bigctl.inference.exporters.torch_process CHECK`.

torch comes into this process alone. `CHECK` holds `ASKED` and the inputs of each batch; logits and `SAID` are written
beside them. Without the library the process ends with `LACKING`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ASKED, SAID, INPUTS, LOGITS = "asked.json", "said.json", "inputs-{}.npz", "logits-{}.npy"
"""Files: what is asked, what is answered, the inputs of a batch, its logits."""
LACKING = 3
"""Exit code where the library cannot be imported, or lacks what it needs for this."""

Arrays = dict[str, np.ndarray]
Net = Callable[[Arrays], Any]


def main() -> int:
    check = Path(sys.argv[1])
    asked = json.loads((check / ASKED).read_text(encoding="utf-8"))
    try:
        import torch

        name = asked["library"]
        library = __import__(name)
    except ImportError:
        return LACKING
    said: dict[str, Any] = {"by": f"{name} {library.__version__}, torch {torch.__version__}"}
    try:
        with torch.inference_mode():
            said["wrong"] = (_of_timm if name == "timm" else _of_transformers)(asked, check)
    except (ImportError, MemoryError, getattr(torch, "OutOfMemoryError", MemoryError)):  # of what is installed
        return LACKING
    except Exception as error:  # of the library, of any kind
        said["wrong"] = f"does not load it: {type(error).__name__}: {error}"
    (check / SAID).write_text(json.dumps(said), encoding="utf-8")
    return 0


def _of_transformers(asked: dict[str, Any], check: Path) -> str | None:
    """Writes the logits; gives what is wrong, None where nothing is."""
    import transformers

    folder = asked["folder"]
    load = getattr(transformers, asked["class"]).from_pretrained
    net, told = load(folder, output_loading_info=True, trust_remote_code=asked["own_code"])
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if told.get(kind):
            return f"tells of {kind.replace('_', ' ')}: {', '.join(sorted(map(str, told[kind]))[:3])}"
    if asked["kind"] == "image":
        _write(asked, check, _pictures_of(net.eval(), folder, asked))
        return None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, tokens in asked["texts"]:
        if list(tokenizer(text, add_special_tokens=False)["input_ids"]) != tokens:
            return f"cuts {text[:40]!r} otherwise than the run's tokenizer"
    _write(asked, check, lambda inputs: net.eval()(**_tokens(inputs)).logits)
    return None


def _tokens(inputs: Arrays) -> dict[str, Any]:
    """Texts as transformers takes them."""
    import torch

    given = {"input_ids": inputs["inputs"]}
    if "lengths" in inputs:
        place = np.arange(inputs["inputs"].shape[1])
        given["attention_mask"] = place < inputs["lengths"][:, None]
        given["token_type_ids"] = place >= inputs["segment_start"][:, None]
    return {name: torch.from_numpy(values.astype(np.int64)) for name, values in given.items()}


def _pictures_of(net: Callable[..., Any], folder: str, asked: dict[str, Any]) -> Net:
    """A network that is given pictures as its own processor makes them."""
    import torch

    try:
        from transformers import AutoImageProcessor

        processor: Callable[..., Any] | None = AutoImageProcessor.from_pretrained(folder)
    except ImportError:  # of what it opens pictures with
        processor = None

    def run(inputs: Arrays) -> Any:
        pictures = _coloured(inputs["inputs"], asked["channels"])
        if processor is None:
            pixels = _standardised(pictures, asked)
        else:
            images = list(pictures)
            pixels = processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return net(pixel_values=torch.as_tensor(pixels)).logits

    return run


def _of_timm(asked: dict[str, Any], check: Path) -> str | None:
    """As `_of_transformers`."""
    import timm
    import torch
    from PIL import Image

    net = timm.create_model(f"local-dir:{asked['folder']}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))

    def run(inputs: Arrays) -> Any:
        pictures = _coloured(inputs["inputs"], asked["channels"])
        if asked["channels"] not in (1, 3):  # which Pillow has no pictures for
            return net(torch.from_numpy(_standardised(pictures, asked)))
        return net(torch.stack([transform(Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture))
                                for picture in pictures]))  # fmt: skip

    _write(asked, check, run)
    return None


def _coloured(pictures: np.ndarray, channels: int) -> np.ndarray:
    """Grey pictures with as many channels as the model takes."""
    return np.repeat(pictures, channels, -1) if pictures.shape[-1] == 1 != channels else pictures


def _standardised(pictures: np.ndarray, asked: dict[str, Any]) -> np.ndarray:
    """float32 [batch, channels, rows, columns], by what the folder says of pixels."""
    values = (pictures / 255 - np.asarray(asked["mean"])) / np.asarray(asked["std"])
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2).astype(np.float32))


def _write(asked: dict[str, Any], check: Path, net: Net) -> None:
    for number in range(asked["batches"]):
        with np.load(check / INPUTS.format(number)) as file:
            logits = net(dict(file))
        np.save(check / LOGITS.format(number), logits.float().numpy())


if __name__ == "__main__":
    sys.exit(main())
