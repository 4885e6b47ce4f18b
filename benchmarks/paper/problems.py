"""Generated word problems of arithmetic with an exact reward, in the columns of GSM8K: question, answer.

>>> problem = make_problems(1, random.Random(0))[0]
>>> sorted(problem), reward(f"so the answer is {final_number(problem['answer'])}.", problem["answer"])
(['answer', 'question'], 1.0)
"""

import random
import re
from collections.abc import Sequence
from typing import Any

NAMES = ("Ada", "Bo", "Cem", "Dana", "Eli", "Fay", "Gus", "Ida")
THINGS = ("apples", "books", "coins", "eggs", "keys", "pens", "shells", "stamps")


def make_problems(count: int, rng: random.Random) -> list[dict[str, str]]:
    """Return different problems of two steps. An answer ends with ``#### `` and its number, as GSM8K's do."""
    problems: dict[str, str] = {}
    while len(problems) < count:
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        a, b, c = rng.randint(2, 20), rng.randint(2, 20), rng.randint(2, 9)
        kind = rng.randrange(3)
        if kind == 0:
            question = f"{name} has {a} {thing} and finds {b} more. Then {c} get lost. How many {thing} are left?"
            steps = [f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"]
        elif kind == 1:
            question = f"{name} has {c} boxes of {a} {thing} and {b} single ones. How many {thing} does {name} have?"
            steps = [f"{c} * {a} = {c * a}", f"{c * a} + {b} = {c * a + b}"]
        else:
            question = f"{name} shares {a * c} {thing} among {c} friends, and each already has {b}. How many has each?"
            steps = [f"{a * c} / {c} = {a}", f"{a} + {b} = {a + b}"]
        problems[question] = ", ".join(steps) + f" #### {steps[-1].split()[-1]}"
    return [{"question": question, "answer": answer} for question, answer in problems.items()]


def final_number(text: str) -> str | None:
    """Return the last number of a text, without its thousands separators and zeros after the point; None if none.

    >>> final_number("5 * 250 = 1,250 #### 1,250"), final_number("It is 7.50."), final_number("none")
    ('1250', '7.5', None)
    """
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    if not found:
        return None
    number = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


def reward(completion: str, answer: str) -> float:
    """Return 1 if the last number of a completion is that of the answer, else 0."""
    given = final_number(completion)
    return float(given is not None and given == final_number(answer))


def rewards_of(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """Return the rewards of samples, as the trainer asks for them: texts, or conversations of one turn."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [reward(text, right) for text, right in zip(texts, answer, strict=True)]
