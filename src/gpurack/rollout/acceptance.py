"""What a host must hold after a roll-out: limits, and the comparison with what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from pydantic import BaseModel, ConfigDict, Field


class Acceptance(BaseModel):
    """Limits a model's answers must keep for a roll-out to go on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_token_ms: int = Field(
        200,
        ge=1,
        le=600_000,
        description="Longest wait for a loaded model's first token, in milliseconds",
    )
    tokens_per_second: float = Field(
        5.0, ge=0, le=100_000, description="Least speed of an answer; 5 is about as fast as people read"
    )
    question: str = Field(
        "Answer in one short sentence: what is a server?", min_length=1, description="What the model is asked"
    )


@dataclass(frozen=True)
class Answer:
    """One answer of a model.

    Attributes:
        status: of HTTP; 0 when there was no answer at all.
        first_token_ms: from the request to the first byte of the answer; for embeddings to the last.
        tokens_per_second: by the server's own count; None where it counts none.
        text: what it said; for embeddings the number of dimensions.
        error: what went wrong, empty when nothing did.
    """

    status: int
    first_token_ms: float = 0.0
    tokens_per_second: float | None = None
    text: str = ""
    error: str = ""


@dataclass(frozen=True)
class Trial:
    """All answers of one model on one host."""

    host: str
    model: str
    answers: tuple[Answer, ...]

    @property
    def first_token_ms(self) -> float | None:
        """Median over the answers that came; None without one."""
        times = [answer.first_token_ms for answer in self.answers if not answer.error]
        return median(times) if times else None

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the answers that were counted; None without one."""
        speeds = [answer.tokens_per_second for answer in self.answers if answer.tokens_per_second is not None]
        return median(speeds) if speeds else None

    def failures(self, limits: Acceptance) -> Iterator[str]:
        """Yield what does not hold, each with the figure and the limit."""
        if not self.answers:
            yield f"{self.model}: was not asked"
        for number, answer in enumerate(self.answers, start=1):
            if answer.error:
                yield f"{self.model}: answer {number} of {len(self.answers)}: {answer.error}"
        first, speed = self.first_token_ms, self.tokens_per_second
        if first is not None and first > limits.first_token_ms:
            yield f"{self.model}: first token after {first:.0f} ms, the limit is {limits.first_token_ms} ms"
        if speed is not None and speed < limits.tokens_per_second:
            yield f"{self.model}: {speed:.1f} tokens a second, the limit is {limits.tokens_per_second:g}"
