"""Explanations are captum's, and attacks as strong as foolbox's, on the same models in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigctl
from bigctl.inference.attacks import ensemble, trained_runs
from bigctl.inference.explaining.images import ImageExplainer
from bigctl.inference.explaining.tables import TableExplainer
from bigctl.inference.explaining.texts import TextExplainer
from bigctl.inference.exporters.formats import exporter
from bigctl.inference.trained import TrainedRun
from bigctl.training.checkpoints.arrays import flatten
from tests import small

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.fewer
DIGITS = ["recipe=cnn_cls", "data=digits", "model.channels=[8]", "model.hidden=[16]", "model.activation=tanh"]
DIGITS += ["model.dropout=0", "train.steps=150", "train.tensorboard=false", "optimizer.lr=0.01", "train.ema=0"]
TEXTS = ["soup under the moon", "salt and butter in thunder", "rain over the salty soup"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedRun, Any]:
    """A run on pictures, and the same network in torch, of pictures [N, 1, 8, 8] from 0 to 1."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    bigctl.train(DIGITS, folder, quiet=True)
    trained = TrainedRun.load(str(folder))
    weights = {name: torch.from_numpy(np.array(value)) for name, value in flatten(trained.params).items()}
    (mean,), (std,) = trained.features.mean, trained.features.std

    class Net(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            kernel = weights["convs/0/kernel"].permute(3, 2, 0, 1)
            x = torch.nn.functional.conv2d((x - mean) / std, kernel, weights["convs/0/bias"])
            x = torch.tanh(torch.nn.functional.max_pool2d(x, 2)).permute(0, 2, 3, 1).flatten(1)
            x = torch.tanh(x @ weights["layers/0/kernel"] + weights["layers/0/bias"])
            return x @ weights["head/kernel"] + weights["head/bias"]

    net = Net().eval()
    pictures = trained.data().splits["test"]["inputs"][:50]
    found = net(in_torch(pictures)).detach().numpy()
    assert found == pytest.approx(trained.logits(np.asarray(pictures)), abs=1e-4)
    return trained, net


def in_torch(pictures: np.ndarray) -> Any:
    return torch.from_numpy(np.asarray(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255)


# --------------------------------------------------------------------------------------------------------------- captum


def test_pictures_are_explained_as_captum_does(digits: tuple[TrainedRun, Any]) -> None:
    attr = pytest.importorskip("captum.attr")
    trained, net = digits
    pictures = np.asarray(trained.data().splits["test"]["inputs"][:4])
    explainer, blank = ImageExplainer(trained), torch.full((1, 1, 8, 8), trained.features.mean[0])
    for method in ("integrated_gradients", "occlusion"):
        for picture, each in zip(pictures, explainer.explain(pictures, method), strict=True):
            target, given = each.attribution.output.number, in_torch(picture[None])
            if method == "occlusion":
                found = attr.Occlusion(net).attribute(given, (1, 1, 1), baselines=blank, target=target)
            else:
                found = attr.IntegratedGradients(net).attribute(given, blank, target, n_steps=200)
            wanted = found.detach().numpy()[0, 0]
            assert np.abs(wanted).max() > 0.1
            np.testing.assert_allclose(each.attribution.values, wanted, atol=1e-4)


def test_rows_are_explained_as_captum_does(tmp_path: Path) -> None:
    """Shapley values against one row of the background are captum's; ours are their mean over all."""
    attr = pytest.importorskip("captum.attr")
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=120) for name in "abc"}
    place = rng.choice(["north", "south", "west"], 120)
    small.write(tmp_path / "rows.csv", {**rows, "place": place, "kind": np.where(rows["a"] > 0, "x", "y")})
    keys = [*(key for key in small.KEYS if "ema" not in key), "train.ema=0", "data=csv"]
    bigctl.train([*keys, f"data.path={tmp_path / 'rows.csv'}"], tmp_path / "run", quiet=True)
    trained = TrainedRun.load(str(tmp_path / "run"))
    weights = {name: torch.from_numpy(np.array(value)) for name, value in flatten(trained.params).items()}

    def net(x: Any) -> Any:
        hidden = torch.relu(x @ weights["layers/0/kernel"] + weights["layers/0/bias"])
        return hidden @ weights["head/kernel"] + weights["head/bias"]  # log-odds of the second class

    explainer = TableExplainer(trained, rows=5)
    row = np.asarray(trained.data().splits["test"]["inputs"][:1], np.float32)
    (each,) = explainer.explain(row, wanted=trained.classes[1])
    mask = torch.from_numpy(explainer.column.astype(np.int64))[None]
    method, total = attr.ShapleyValues(net), np.zeros(4)
    for background in explainer.background:
        found = method.attribute(
            torch.from_numpy(row.copy()), torch.from_numpy(background[None].copy()), 0, feature_mask=mask
        ).detach()  # fmt: skip
        first = [int(np.flatnonzero(explainer.column == number)[0]) for number in range(4)]
        total += found.numpy()[0, first] / len(explainer.background)
    assert np.abs(total).max() > 0.05
    np.testing.assert_allclose(each.attribution.values, total, atol=1e-4)


def test_texts_are_explained_as_captum_does_on_the_exported_model(tmp_path: Path) -> None:
    attr = pytest.importorskip("captum.attr")
    transformers = pytest.importorskip("transformers")
    rows = [(TEXTS[n % 3] + f" {n % 7}", ("cold", "hot", "hot")[n % 3]) for n in range(90)]
    small.write(tmp_path / "rows.csv", dict(zip(("words", "kind"), zip(*rows, strict=True), strict=True)))
    keys = ["recipe=bert_cls", "model=bert", "model.layers=1", "model.width=16", "model.heads=2"]
    keys += ["model.intermediate=16", "model.positions=32", "model.pool=cls", "model.pooler=true"]
    keys += ["recipe.tokenizer.max_length=32", "recipe.bucketing.shapes=1"]
    keys += ["recipe.tokenizer.type=words", "train.steps=40", "train.batch_size=16", "optimizer.lr=0.01", "train.ema=0"]
    keys += ["data=csv", "data.text=words", f"data.path={tmp_path / 'rows.csv'}", "data.label=kind"]
    bigctl.train(keys, tmp_path / "run", quiet=True)
    trained = TrainedRun.load(str(tmp_path / "run"))
    exporter("hf").write(trained, tmp_path / "hf")
    net = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    method = attr.LayerIntegratedGradients(
        lambda ids: net(input_ids=ids).logits, net.bert.embeddings.word_embeddings
    )  # fmt: skip
    for text, each in zip(TEXTS, TextExplainer(trained).explain(TEXTS, "integrated_gradients"), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        blank = torch.full_like(ids, tokenizer.pad_token_id)
        blank[:, 0], blank[:, -1] = ids[:, 0], ids[:, -1]
        target = each.attribution.output.number
        points = each.attribution.points  # as many in both: more of them change what completeness tells
        found = method.attribute(ids, blank, target=target, n_steps=points).sum(-1)[0].detach().numpy()
        assert np.abs(found).max() > 1e-3
        np.testing.assert_allclose(each.attribution.values, found, atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- foolbox


@pytest.mark.parametrize("norm,eps", [("linf", 0.08), ("l2", 0.5)])
def test_attacks_are_as_strong_as_those_of_foolbox(digits: tuple[TrainedRun, Any], norm: str, eps: float) -> None:
    foolbox = pytest.importorskip("foolbox")
    trained, net = digits
    x, labels, _ = trained_runs.examples(trained, trained.data(), "train", 1000)
    weights, threat = (trained.params, trained.variables), trained_runs.threat_of(trained, norm)
    arena = ensemble.Arena(trained_runs.asking(trained), weights, threat)
    ours = ensemble.attacks(10, ensemble.Effort(steps=40, restarts=1, queries=1))
    model, kinds = foolbox.PyTorchModel(net, bounds=(0, 1)), {"linf": ("FGSM", "LinfPGD"), "l2": ("FGM", "L2PGD")}
    given, truth = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.astype(np.int64))
    for name, kind in zip(("FGSM", "PGD"), kinds[norm], strict=True):
        more = {"rel_stepsize": 2.5 / 40, "steps": 40} if name == "PGD" else {}
        attack = getattr(foolbox.attacks, kind)(random_start=False, **more)
        _, _, broken = attack(model, given, truth, epsilons=eps)
        theirs = 1 - float(broken.float().mean())
        found = 1 - float(arena.wrong(arena.attack(name, ours[name], x, labels, eps), labels).mean())
        assert 0.02 < theirs < 0.98 and abs(found - theirs) <= 0.005, (name, found, theirs)


# ----------------------------------------------------------------------------------------------------------- autoattack


def test_the_ensemble_is_as_strong_as_autoattack(digits: tuple[TrainedRun, Any]) -> None:
    """By torchattacks, a port of the authors' code. No extra brings it, as it asks for a requests of 2020:
    `pip install --no-deps torchattacks`. Of theirs a targeted attack, FAB and 5,000 queries are more than ours has."""
    theirs = pytest.importorskip("torchattacks")
    trained, net = digits
    x, labels, _ = trained_runs.examples(trained, trained.data(), "train", 1000)
    weights, eps = (trained.params, trained.variables), 0.1
    arena = ensemble.Arena(trained_runs.asking(trained), weights, trained_runs.threat_of(trained, "linf"))
    ours = ensemble.attacks(10, ensemble.Effort(steps=100))
    given, truth = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels.astype(np.int64))

    def left(attack: Any) -> float:
        attack.set_device("cpu")
        return float((net(attack(given, truth)).argmax(1) == truth).float().mean())

    broken = np.zeros(len(x), bool)
    for name in ("APGD-CE", "APGD-DLR", "Square"):
        moved = arena.attack(name, ours[name], x, labels, eps)
        assert np.abs(moved - x).max() <= eps + 1e-6 and moved.min() >= 0 and moved.max() <= 1
        wrong = arena.wrong(moved, labels)
        broken |= wrong
        if name.startswith("APGD"):
            loss = name.removeprefix("APGD-").lower()
            alone = left(theirs.APGD(net, eps=eps, steps=100, loss=loss))
            assert abs(1 - float(wrong.mean()) - alone) <= 0.005, name
    assert 0.1 < 1 - float(broken.mean()) <= left(theirs.AutoAttack(net, eps=eps)) + 0.005
