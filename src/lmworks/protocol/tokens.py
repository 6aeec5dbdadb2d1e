"""`/tokenize` and `/detokenize`, in vLLM's shape. Knows no tokenizer."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from lmworks.protocol.chat_messages import Messages
from lmworks.protocol.sampling import TokenId
from lmworks.protocol.tools import Tool
from lmworks.protocol.wire import WireRequest, WireResponse


class TokenizeRequest(WireRequest):
    """The body of `POST /tokenize`: a text, or a conversation as the chat template writes it."""

    model: str | None = None
    """None takes the first model that is served."""
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    """Of a text: begin it as the model's prompts begin; None means yes. A template brings its own."""
    add_generation_prompt: bool | None = None
    """Of a conversation: open the assistant's turn; None means yes."""
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        return self


class TokenizeResponse(WireResponse):
    """The tokens."""

    OMIT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"token_strs"})

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(WireRequest):
    """The body of `POST /detokenize`."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1_000_000)]


class DetokenizeResponse(WireResponse):
    """The text."""

    prompt: str
