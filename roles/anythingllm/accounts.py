"""What AnythingLLM is told through its API: its users and its workspaces."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from gpurack.secrets import Secret, Shape

Username = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9._@-]{1,63}$")]
"""As AnythingLLM's models/user.js checks it."""

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
Password = Annotated[Secret, Shape("password", 12)]


class Account(BaseModel):
    """A user; the password is the first one, and later the user's own business."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    password: Password = Field(description="First password; changing it here later changes nothing on the host")
    role: Literal["default", "manager", "admin"] = Field(
        "default", description="default: own workspaces; manager: all workspaces and users; admin: everything"
    )
    daily_messages: int | None = Field(None, ge=1, description="Messages in 24 hours; empty: no limit")
    suspended: bool = Field(False, description="Cannot log in; chats are kept")

    @property
    def fields(self) -> dict[str, Any]:
        """What the API is told, password left out; names as in AnythingLLM's users table."""
        return {"role": self.role, "dailyMessageLimit": self.daily_messages, "suspended": int(self.suspended)}


class Administrator(BaseModel):
    """The administrator gpurack logs in as for the first time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    username: Username = Field("admin", description="Login name")
    password: Password = Field(
        Secret.stored("anythingllm_admin_password"),
        description="First password; also used to make a new API key if gpurack's own is lost",
        validate_default=True,
    )


class Workspace(BaseModel):
    """A workspace of a department; what is left empty is left to the people who use it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(None, min_length=1, max_length=255, description="Name people see; empty: the slug")
    model: str | None = Field(None, min_length=1, description="Model that answers; empty: the role's `model`")
    prompt: str | None = Field(None, min_length=1, description="System prompt")
    temperature: float | None = Field(None, ge=0, le=2, description="Temperature of answers")
    history: int | None = Field(None, ge=0, le=1000, description="Messages of the chat that are sent along")
    similarity: float | None = Field(None, ge=0, le=1, description="Least similarity of a document's piece")
    pieces: int | None = Field(None, ge=1, le=100, description="Most pieces of documents sent along")
    mode: Literal["chat", "query", "automatic"] | None = Field(
        None, description="query: answers from documents only; automatic: tools are called without asking"
    )
    refusal: str | None = Field(None, min_length=1, description="Answer in query mode when no document fits")
    members: tuple[Username, ...] | None = Field(
        None, description="Users who may enter, the only ones; empty: not managed. Managers and admins see everything"
    )

    @field_validator("members")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and len(set(value)) != len(value):
            twice = next(name for name in value if value.count(name) > 1)
            raise ValueError(f"{twice} is a member twice")
        return value

    def fields(self, slug: str) -> dict[str, Any]:
        """What the API is told; names as in AnythingLLM's workspaces table."""
        chosen = {
            "openAiPrompt": self.prompt,
            "openAiTemp": self.temperature,
            "openAiHistory": self.history,
            "similarityThreshold": self.similarity,
            "topN": self.pieces,
            "chatMode": self.mode,
            "queryRefusalResponse": self.refusal,
        }
        return {
            "name": self.name or slug,
            "chatProvider": "ollama" if self.model else None,
            "chatModel": self.model,
            **{key: value for key, value in chosen.items() if value is not None},
        }
