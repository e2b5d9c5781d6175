"""Questions of our own in the form of ARC's, short enough for the smallest model."""

from __future__ import annotations

QUESTIONS = [
    {
        "id": str(number),
        "question": question,
        "choices": {"text": choices, "label": list("ABCD")[: len(choices)]},
        "answerKey": "ABCD"[number % len(choices)],
    }
    for number, (question, choices) in enumerate(
        [
            ("Which of these is hot?", ["the sun", "ice", "snow", "a cold lake in winter"]),
            ("What do cows drink?", ["milk", "water", "oil"]),
            ("Where do fish live?", ["in trees", "in the sea", "in houses", "on the moon"]),
            ("Which is the largest?", ["a mouse", "a dog", "a house", "a mountain"]),
            ("What is made of wood?", ["a table", "a river", "the wind", "a stone"]),
            ("Who works in a school?", ["a teacher", "a sailor", "a farmer", "a king"]),
        ]
    )
]
