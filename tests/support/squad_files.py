"""A file of questions in SQuAD's format, made up on the spot."""

from __future__ import annotations

import json
from pathlib import Path

PLACES = ("北京", "上海", "广州", "成都", "西安", "杭州", "南京", "天津")
FOODS = ("面条", "米饭", "饺子", "包子", "豆腐", "火锅", "烤鸭", "月饼")


def write_squad(path: Path, *, articles: int = 8) -> Path:
    """Every article has one passage and two questions."""
    data = []
    for number in range(articles):
        place, food = PLACES[number % 8], FOODS[(number // 8 + number) % 8]
        context = (
            f"他住在{place}，每天早上坐地铁去上班。中午的时候，他和朋友们一起吃{food}，然后喝茶。"
        )
        asked = [("他住在哪里？", place), ("中午他和朋友们一起吃什么？", food)]
        qas = [
            {
                "id": f"a{number}-q{at}",
                "question": question,
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            for at, (question, answer) in enumerate(asked)
        ]
        data.append({"title": f"t{number}", "paragraphs": [{"context": context, "qas": qas}]})
    path.write_text(json.dumps({"version": "1", "data": data}), encoding="utf-8")
    return path
