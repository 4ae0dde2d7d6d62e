"""Small sums in words and in signs; the answer repeats the sum and shows a step, which lets a small model do it."""

import random

from models.cria.conversation import Message, Persona, exchange
from models.cria.phrasing import roughen, spin
from models.cria.tables import phrases, words

_SIGNS = {"+": ["plus", "and"], "-": ["minus"], "*": ["times", "multiplied by"], "/": ["divided by"]}


def result(a: int, sign: str, b: int) -> int:
    """The value of a sum that has a whole value."""
    return {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]


def numbers(rng: random.Random) -> tuple[int, str, int]:
    """A sum within reach: numbers up to a hundred, the tables to twelve, whole divisions."""
    sign = rng.choice("++++---**/")
    if sign == "*":
        return rng.randint(0, 12), sign, rng.randint(0, 12)
    if sign == "/":
        b, c = rng.randint(1, 12), rng.randint(0, 12)
        return b * c, sign, b
    top = rng.choice([10, 20, 100, 100, 100])
    a, b = rng.randint(0, top), rng.randint(0, top)
    return (a, sign, b) if sign == "+" or (top <= 20 and rng.random() < 0.15) else (max(a, b), sign, min(a, b))


def step(a: int, sign: str, b: int) -> str:
    """The sum half done, as one does it in the head: tens and ones apart, so that nothing is carried ahead."""
    ones = a % 10 + b % 10
    if sign == "+" and max(a, b) >= 10 and ones > 0:
        return f"{a + b - ones} + {ones}"
    if sign == "-" and a >= b >= 10:
        return f"{a - b // 10 * 10} - {b % 10}"
    return f"{a} {sign} {b}"


def written(a: int, sign: str, b: int) -> str:
    """The sum, its step if it needs one, and its value."""
    whole, half = f"{a} {sign} {b}", step(a, sign, b)
    middle = "" if half == whole or half.endswith(" 0") else f"{half} = "
    return f"{whole} = {middle}{result(a, sign, b)}."


def question(rng: random.Random, a: int, sign: str, b: int) -> str:
    """One way to ask for a sum."""
    kind = rng.random()
    if kind < 0.22:
        return spin(rng, rng.choice(phrases(f"sum {sign}")), a=a, b=b)
    if kind < 0.28 and a <= 12 and b <= 12:
        text = f"{words('numbers')[a]} {rng.choice(_SIGNS[sign])} {words('numbers')[b]}"
    elif kind < 0.5:
        text = f"{a} {rng.choice(_SIGNS[sign])} {b}"
    else:
        gap = rng.choice(["", " ", " "])
        text = f"{a}{gap}{rng.choice([sign, 'x', '×']) if sign == '*' else sign}{gap}{b}"
    asked = spin(rng, rng.choice(phrases("asking for a sum")), sum=text)
    return asked[0].upper() + asked[1:]


def sum_asked(rng: random.Random, who: Persona) -> list[Message]:
    """A bare sum."""
    a, sign, b = numbers(rng)
    return exchange(roughen(rng, question(rng, a, sign, b)), written(a, sign, b))


def sum_told(rng: random.Random, who: Persona) -> list[Message]:
    """A sum inside a little story."""
    sign = rng.choice("+-*")
    top = 12 if sign == "*" else 30
    b, a = sorted((rng.randint(2, top), rng.randint(2, top)))
    things = rng.choice(words("countable"))
    count = result(a, sign, b)
    told = f"So {count} {things} are left." if sign == "-" else f"So there are {count} {things} in all."
    asked = spin(rng, phrases(f"story {sign}")[0], a=a, b=b, things=things)
    return exchange(asked, f"{written(a, sign, b)} {told}")


def counting(rng: random.Random, who: Persona) -> list[Message]:
    """Counting up or down, the next number, the greater one."""
    asked, answer = rng.choices([_counted, _counted_down, _compared, _next], [50, 15, 25, 10])[0](rng)
    return exchange(roughen(rng, asked), answer)


def _counted(rng: random.Random) -> tuple[str, str]:
    start = rng.choice([1, 1, 1, rng.randint(0, 40)])
    run = [str(number) for number in range(start, start + rng.randint(3, 12))]
    asked = phrases("counting" if start == 1 else "counting on")[0]
    return spin(rng, asked, a=run[0], b=_in_words(rng, run[-1])), ", ".join(run) + "."


def _counted_down(rng: random.Random) -> tuple[str, str]:
    start = rng.randint(3, 10)
    asked = spin(rng, phrases("counting down")[0], a=_in_words(rng, str(start)))
    return asked, ", ".join(str(number) for number in range(start, 0, -1)) + "."


def _compared(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(100), 2)
    return spin(rng, phrases("comparing")[0], a=a, b=b), f"{max(a, b)} is greater than {min(a, b)}."


def _next(rng: random.Random) -> tuple[str, str]:
    a = rng.randint(0, 100)
    return spin(rng, phrases("number after")[0], a=a), f"After {a} comes {a + 1}."


def _in_words(rng: random.Random, number: str) -> str:
    """A small number as a word, now and then."""
    return words("numbers")[int(number)] if int(number) <= 12 and rng.random() < 0.3 else number


def drill(rng: random.Random) -> str:
    """A page of sums, every one of them a lesson."""
    return " ".join(written(*numbers(rng)) for _ in range(rng.randint(6, 14)))
