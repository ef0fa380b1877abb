"""What pages say below charts, and how cells and names are set."""

from __future__ import annotations

import numpy as np
import pytest

from bigctl.reports import curves, overlay, page, studies
from bigctl.reports.history import Curve


def curve(*values: float) -> Curve:
    return Curve(np.arange(1, len(values) + 1), np.array(values))


def test_rounds_in_which_no_client_answered_are_no_values_that_went_wrong() -> None:
    found = {"train/loss": curve(0.5, np.nan, np.nan, 0.4), "train/clients": curve(2, 0, 1, 1)}
    captions = {figure.title: figure.caption for figure in curves.figures(found)}
    assert captions["loss"].endswith("1 values are not finite; at 1 of the steps no client answered.")
    found = {"train/loss": curve(0.5, np.nan, 0.4)}
    assert curves.figures(found)[0].caption.endswith("1 values are not finite.")


def test_a_price_that_only_grows_has_no_best_value() -> None:
    assert curves.sentence("privacy/epsilon", curve(1.5, 2, 3)) == "privacy/epsilon ends at 3, between 1.5 and 3."
    assert "its best is 1.5 at step 1" in curves.sentence("val/loss", curve(1.5, 2, 3))


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ({"b": 2}, "is of b."),
        ({"a": 2, "b": 2}, "is of a and b, alike."),
        ({"a": 2, "b": 2, "c": 2}, "is of a, b and c, alike."),
        ({"a": 2, "b": 2, "c": 2, "d": 2}, "is of a, b and 2 more, alike."),
    ],
)
def test_an_overlay_names_all_runs_that_have_the_best_value(best: dict[str, float], said: str) -> None:
    members = [(place, name, curve(0, best.get(name, 1))) for place, name in enumerate("abcd")]
    assert overlay._caption("val/accuracy", members) == f"The best val/accuracy, 2, {said}"


def test_an_overlay_tells_once_what_all_runs_end_at() -> None:
    members = [(place, name, curve(0.5, end)) for place, (name, end) in enumerate({"a": 1, "b": 1}.items())]
    assert overlay._caption("lr", members) == "lr ends at 1 in all 2 runs."
    assert overlay._caption("lr", members[:1]) == "lr ends: a at 1."


def test_of_the_training_loss_a_sweep_says_by_what_a_trial_is_the_best() -> None:
    dots = [(studies.Dot(f"lr={n}", {}, value, {}), curve(3, 2, n)) for n, value in ((1, 0.7), (2, 0.9))]
    drawn = studies.all_curves(dots, "train/loss", "val/accuracy", "max")
    assert drawn is not None
    assert drawn.caption == "train/loss of 2 trials; lr=2, the best by val/accuracy, is drawn thick."


def test_where_values_of_a_parameter_tie_the_sentence_names_them() -> None:
    values = {"0.1": 1.0, "0.2": 1.0, "0.3": 0.5}
    dots = [studies.Dot(f"t{place}", {"model.dropout": place}, value, {}) for place, value in values.items()]
    (drawn,) = studies.slices(dots, [studies.scale({"key": "model.dropout"}, dots)], "val/accuracy", "max")
    assert drawn.caption.endswith("the best val/accuracy, 1, is at model.dropout=0.1 and 0.2, alike.")
    told = [(dot, curve(1, dot.value or 0)) for dot in dots]
    drawn = studies.all_curves(told, "val/accuracy", "val/accuracy", "max")
    assert drawn is not None and drawn.caption.endswith("one of 2 with the best val/accuracy, is drawn thick.")


def test_names_break_after_their_parts_and_cells_stand_by_what_they_hold() -> None:
    assert page.parted("val/average_precision<") == "val/<wbr>average_<wbr>precision&lt;"
    assert [cell for cell in ("1,024.5", "0.2", "-3e-05", "", "12%", "?", "7") if not page.numeric(cell)] == []
    assert not any(map(page.numeric, ("benign 41", "B", "price.csv:31", "10.0.0.1")))
