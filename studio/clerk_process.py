"""The clerk's own process: a question a line on stdin, an answer a line on stdout. See studio.clerk."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from studio.clerk import RefusedError
from studio.failures import explain

Question = Callable[..., Any]


def answer(questions: dict[str, Question], line: str) -> dict[str, Any]:
    """What is written back: an answer, or a refusal in words; never a traceback."""
    try:
        details = json.loads(line)
        return {"answer": questions[details.pop("question")](**details)}
    except Exception as error:
        failure = explain(error)
        keys = error.keys if isinstance(error, RefusedError) else {}
        return {"refused": {"what": failure.what, "fix": failure.fix, "keys": keys}}


def serve(source: TextIO, target: TextIO) -> None:
    from studio.clerk_answers import QUESTIONS

    for line in source:
        target.write(json.dumps(answer(QUESTIONS, line), ensure_ascii=True) + "\n")
        target.flush()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between the answers
    serve(sys.stdin, answers)
