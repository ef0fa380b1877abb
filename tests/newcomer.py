"""A newcomer's folder for `tests/test_first_jobs.py`: files that look like their own, each with something to learn."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TOPICS = {
    "财经": ("央行 股市 基金 楼市 券商 人民币", "下调 收涨 公布 跌破", "利率 季度财报 两个百分点 年内新高"),
    "体育": ("国足 女排 湖人 中超 主教练 世界杯", "击败 逆转 签下 晋级", "决赛 老对手 三连胜 小组头名"),
    "科技": ("苹果 芯片 华为 机器人 卫星 大模型", "发布 升级 量产 开源", "新一代手机 操作系统 测试版 开发者平台"),
}
COMMON = ["今日", "最新消息：", "深度｜", "独家：", "快讯 ", ""]
COLOURS = {"leaf": (60, 150, 50), "sky": (80, 130, 220), "tomato": (210, 50, 40)}
SIZE = 16


def titles(count: int, seed: int) -> dict[str, list[Any]]:
    rng = np.random.default_rng(seed)
    topics = rng.choice(list(TOPICS), count, p=[0.4, 0.35, 0.25])
    texts = [
        str(rng.choice(COMMON)) + "".join(rng.choice(words.split()) for words in TOPICS[topic]) for topic in topics
    ]
    return {"id": list(range(1000, 1000 + count)), "title": texts, "topic": [str(topic) for topic in topics]}


def customers(count: int, seed: int) -> dict[str, list[Any]]:
    """Who leaves is decided by plan, complaints and age, up to some chance; a tenth of the bills is not known."""
    rng = np.random.default_rng(seed)
    age, complaints = rng.integers(18, 80, count), rng.poisson(1.2, count)
    plan, city = rng.choice(["basic", "family", "pro"], count), rng.choice(["上海", "Köln", "Lagos"], count)
    bill = np.round(rng.gamma(4, 10, count), 2)
    score = 2.2 * complaints - 2.5 * (plan == "pro") + 2 * (plan == "basic") - 0.05 * (age - 45) - 3.5
    leaves = rng.random(count) < 1 / (1 + np.exp(-2 * score))
    return {
        "id": [f"C{number:04d}" for number in rng.permutation(count)],
        "age": age.tolist(), "city": city.tolist(), "plan": plan.tolist(), "complaints": complaints.tolist(),
        "bill": ["" if rng.random() < 0.1 else value for value in bill.tolist()],
        "churned": np.where(leaves, "yes", "no").tolist(),
    }  # fmt: skip


def pictures(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Noisy patches of a colour, uint8 [N, SIZE, SIZE, 3], with the name of each."""
    rng = np.random.default_rng(seed)
    names = [list(COLOURS)[number % len(COLOURS)] for number in range(count)]
    middle = np.array([COLOURS[name] for name in names])[:, None, None] + rng.normal(0, 15, (count, 1, 1, 3))
    return np.clip(middle + rng.normal(0, 30, (count, SIZE, SIZE, 3)), 0, 255).astype(np.uint8), names


def novel(sentences: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    who = ["the old captain", "her brother", "a stranger", "the widow", "the doctor"]
    did = ["walked slowly to", "remembered", "never spoke of", "looked out over", "came back from"]
    what = ["the harbour", "the empty house", "that winter", "the sea", "the letter"]
    text = ""
    for number in range(sentences):
        sentence = f"{rng.choice(who)} {rng.choice(did)} {rng.choice(what)}. "
        text += sentence[0].upper() + sentence[1:] + ("\n\n" if number % 5 == 4 else "")
    return text


def write_rows(path: Path, rows: dict[str, list[Any]], without: str | None = None) -> None:
    """With the mark at its beginning by which Excel knows UTF-8."""
    kept = {name: values for name, values in rows.items() if name != without}
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerow(kept)
        writer.writerows(zip(*kept.values(), strict=True))


def fill(folder: Path) -> None:
    write_rows(folder / "titles.csv", titles(400, seed=1))
    write_rows(folder / "new_titles.csv", titles(40, seed=2), without="topic")
    write_rows(folder / "customers.csv", customers(600, seed=1))
    write_rows(folder / "new_customers.csv", customers(200, seed=2), without="churned")
    (folder / "novel.txt").write_text(novel(500, seed=1), encoding="utf-8")
    images, names = pictures(150, seed=1)
    np.savez(folder / "patches.npz", images=images, labels=names)
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "photos" / name / f"{number}.png")
    (folder / "album").mkdir()
    for number, image in enumerate(pictures(30, seed=2)[0]):
        Image.fromarray(image).save(folder / "album" / f"{number:02d}.png")
