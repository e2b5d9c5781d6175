"""The synthetic tasks of the tiny LLaDA2 checkpoint: deterministic generators, and the split into two sides.

A question and its answer are plain text; a prompt is the question, raw or in the chat form, with or without solved
examples before it. One question in ten is held out, by a digest of its text, and never occurs in training, neither as a
question nor as a solved example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

EOS, MASK, USER, ASSISTANT, SYSTEM, END = 256, 257, 258, 259, 260, 261
VOCABULARY_SIZE = 320
SPECIAL_TOKENS = {
    "<|endoftext|>": EOS,
    "<|mask|>": MASK,
    "<|user|>": USER,
    "<|assistant|>": ASSISTANT,
    "<|system|>": SYSTEM,
    "<|end|>": END,
    **{f"<|reserved_{i}|>": i for i in range(END + 1, VOCABULARY_SIZE)},
}
LONGEST_PROMPT = 136

CAPITALS = {
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Austria": "Vienna", "Belgium": "Brussels",
    "Brazil": "Brasilia", "Canada": "Ottawa", "Chile": "Santiago", "China": "Beijing", "Cuba": "Havana",
    "Denmark": "Copenhagen", "Egypt": "Cairo", "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin",
    "Ghana": "Accra", "Greece": "Athens", "Hungary": "Budapest", "India": "New Delhi", "Iran": "Tehran",
    "Iraq": "Baghdad", "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi",
    "Mexico": "Mexico City", "Nepal": "Kathmandu", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Russia": "Moscow", "Spain": "Madrid", "Sweden": "Stockholm", "Thailand": "Bangkok",
    "Turkey": "Ankara", "Ukraine": "Kyiv", "Uruguay": "Montevideo", "Vietnam": "Hanoi",
}  # fmt: skip
CAPITAL_QUESTIONS = (
    "capital of {}:",
    "The capital of {} is ",
    "What is the capital of {}? ",
    "{}'s capital is ",
    "{}: capital? ",
)
UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = (
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with the answer it asks for.

    Attributes:
        task: name of the task.
        prompt: what the model is given, special tokens written out.
        answer: what it should continue with, before the end of sequence.
    """

    task: str
    prompt: str
    answer: str


def spell(number: int) -> str:
    """Return the English name of a number from 0 to 99."""
    if number < 20:
        return UNITS[number]
    tens, units = divmod(number, 10)
    return TENS[tens - 2] + (f"-{UNITS[units]}" if units else "")


def make_word(random: Random, shortest: int, longest: int) -> str:
    """Return different letters in a random order."""
    return "".join(random.sample("abcdefghijklmnopqrstuvwxyz", random.randint(shortest, longest)))


def ask_add(random: Random) -> tuple[str, str]:
    """`37+58=` → `95`."""
    left, right = random.randint(0, 59), random.randint(0, 59)
    return f"{left}+{right}=", str(left + right)


def ask_subtract(random: Random) -> tuple[str, str]:
    """`54-37=` → `17`."""
    low, high = sorted((random.randint(0, 59), random.randint(0, 59)))
    return f"{high}-{low}=", str(high - low)


def ask_multiply(random: Random) -> tuple[str, str]:
    """`6*27=` → `162`."""
    left, right = random.randint(2, 9), random.randint(2, 30)
    return f"{left}*{right}=", str(left * right)


def ask_sort(random: Random) -> tuple[str, str]:
    """`sort 7294:` → `2479`."""
    digits = random.choices("0123456789", k=random.randint(3, 10))
    return f"sort {''.join(digits)}:", "".join(sorted(digits))


def ask_reverse(random: Random) -> tuple[str, str]:
    """`reverse onila:` → `alino`."""
    word = make_word(random, 3, 8)
    return f"reverse {word}:", word[::-1]


def ask_copy(random: Random) -> tuple[str, str]:
    """`copy xskq:` → `xskq`."""
    text = make_word(random, 4, 20)
    return f"copy {text}:", text


def ask_upper(random: Random) -> tuple[str, str]:
    """`upper onila:` → `ONILA`."""
    word = make_word(random, 3, 10)
    return f"upper {word}:", word.upper()


def ask_capital(random: Random) -> tuple[str, str]:
    """`The capital of France is` → `Paris`."""
    country = random.choice(list(CAPITALS))
    return random.choice(CAPITAL_QUESTIONS).format(country), CAPITALS[country]


def ask_words(random: Random) -> tuple[str, str]:
    """`in words 47:` → `forty-seven`."""
    number = random.randint(0, 99)
    return f"in words {number}:", spell(number)


def ask_digits(random: Random) -> tuple[str, str]:
    """`in digits forty-seven:` → `47`."""
    number = random.randint(0, 99)
    return f"in digits {spell(number)}:", str(number)


def ask_largest(random: Random) -> tuple[str, str]:
    """`largest of 17 85 42:` → `85`."""
    numbers = random.sample(range(100), random.randint(2, 5))
    return f"largest of {' '.join(map(str, numbers))}:", str(max(numbers))


def ask_lookup(random: Random) -> tuple[str, str]:
    """`k=31 m=80 z=17; m?` → `80`."""
    keys = random.sample("abcdefghijklmnopqrstuvwxyz", random.randint(3, 14))
    values = [str(random.randint(10, 99)) for _ in keys]
    index = random.randrange(len(keys))
    return f"{' '.join(map('='.join, zip(keys, values, strict=True)))}; {keys[index]}?", values[index]


def ask_next(random: Random) -> tuple[str, str]:
    """`next 3 6 9 12:` → `15`."""
    start, step = random.randint(0, 40), random.randint(1, 9)
    return f"next {' '.join(str(start + step * i) for i in range(4))}:", str(start + step * 4)


def ask_count(random: Random) -> tuple[str, str]:
    """`count x in xyzx:` → `2`."""
    letter = random.choice("xyz")
    text = "".join(random.choices("xyz", k=random.randint(3, 9)))
    return f"count {letter} in {text}:", str(text.count(letter))


TASKS: dict[str, Callable[[Random], tuple[str, str]]] = {
    "add": ask_add,
    "subtract": ask_subtract,
    "multiply": ask_multiply,
    "sort": ask_sort,
    "reverse": ask_reverse,
    "copy": ask_copy,
    "upper": ask_upper,
    "capital": ask_capital,
    "words": ask_words,
    "digits": ask_digits,
    "largest": ask_largest,
    "lookup": ask_lookup,
    "next": ask_next,
    "count": ask_count,
}
WEIGHTS = {"add": 3, "subtract": 3, "reverse": 2, "copy": 2, "capital": 2}
"""How often a task is drawn for training, relative to 1 for the others."""


def is_held_out(question: str) -> bool:
    """Tell whether a question belongs to the held-out tenth."""
    return hashlib.sha256(question.encode()).digest()[0] % 10 == 0


def ask(task: str, random: Random, held_out: bool) -> tuple[str, str]:
    """Draw a question with its answer from one side of the split."""
    while True:
        question, answer = TASKS[task](random)
        if is_held_out(question) == held_out:
            return question, answer


def draw_task(random: Random) -> str:
    """Draw a task's name for training."""
    return random.choices(list(TASKS), [WEIGHTS.get(task, 1) for task in TASKS])[0]


def make_conversation(task: str, random: Random, held_out: bool) -> list[Example]:
    """Draw a prompt for `task`, raw or in the chat form, with the solved examples before it.

    Args:
        task: what the last prompt asks for.
        random: where it is drawn from.
        held_out: the side of the split that the last question comes from; the solved examples are training questions.

    Returns:
        One example per question in order; each prompt begins with the prompt and answer before it. The last prompt has
        at most `LONGEST_PROMPT` tokens.
    """
    chat = random.random() < 0.3
    before, after, between = ("<|user|>", "<|end|><|assistant|>", "<|end|>") if chat else ("", "", "\n")
    turns = [(task, *ask(task, random, held_out))]
    limit = random.choice((0, 0, 0, 0, 40, 72, LONGEST_PROMPT))
    size = len(encode(before + turns[0][1] + after))
    while True:
        solved = draw_task(random)
        question, answer = ask(solved, random, held_out=False)
        size += len(encode(before + question + after + answer + between))
        if size > limit:
            break
        turns.insert(0, (solved, question, answer))
    examples: list[Example] = []
    prompt = ""
    for name, question, answer in turns:
        prompt += before + question + after
        examples.append(Example(name, prompt, answer))
        prompt += answer + between
    return examples


def encode(text: str) -> list[int]:
    """Tokenize: one token per byte, special tokens where they are written out."""
    tokens: list[int] = []
    while text:
        if text.startswith("<|") and (end := text.find("|>")) > 0 and text[: end + 2] in SPECIAL_TOKENS:
            tokens.append(SPECIAL_TOKENS[text[: end + 2]])
            text = text[end + 2 :]
        else:
            tokens.extend(text[0].encode())
            text = text[1:]
    return tokens


def training_conversations(seed: int) -> Iterator[list[Example]]:
    """Yield training conversations without end."""
    random = Random(seed)
    while True:
        yield make_conversation(draw_task(random), random, held_out=False)


def held_out_examples(per_task: int, seed: int = 2) -> list[Example]:
    """Return held-out examples with distinct questions where the task has enough, one of each task in turn."""
    random = Random(seed)
    drawn: dict[str, list[Example]] = {task: [] for task in TASKS}
    for task, examples in drawn.items():
        for attempt in range(50 * per_task):
            example = make_conversation(task, random, held_out=True)[-1]
            if example.prompt not in {other.prompt for other in examples} or attempt > 40 * per_task:
                examples.append(example)
            if len(examples) == per_task:
                break
    return [examples[i] for i in range(per_task) for examples in drawn.values()]
