"""`/tokenize`, `/detokenize`, `/tokenizer_info`: a served model's tokenizer for clients without it. Knows no engine.

vLLM's routes; lm-evaluation-harness finds its remote tokenizer by them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from lmworks.protocol.tokens import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from lmworks.protocol.wire import parse_request
from lmworks.server.answering import answer_with
from lmworks.server.caller import Caller
from lmworks.server.conversation import encode_conversation
from lmworks.server.openapi import described
from lmworks.server.served_model import ServedModel
from lmworks.server.state import ServerState, state_of

router = APIRouter()


@router.post("/tokenize", **described(TokenizeRequest, TokenizeResponse))
async def tokenize(request: Request) -> Response:
    """Texts and conversations as tokens."""
    return await answer_with(request, create_tokens)


@router.post("/detokenize", **described(DetokenizeRequest, DetokenizeResponse))
async def detokenize(request: Request) -> Response:
    """Tokens as text."""
    return await answer_with(request, create_text)


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """What `tokenizer_config.json` says of the first model, with its chat template."""
    tokenizer = state_of(request).model(None).llm.tokenizer
    return {**tokenizer.definition.config, "chat_template": tokenizer.chat_template}


async def create_tokens(state: ServerState, body: bytes, _: Caller) -> TokenizeResponse:
    """Read a body and answer it.

    Raises:
        InvalidRequestError: the body is impossible, or the chat template refuses the conversation.
    """
    asked = parse_request(TokenizeRequest, body)
    model = state.model(asked.model)
    tokens = await asyncio.to_thread(_encode, model, asked)
    return TokenizeResponse(
        count=len(tokens),
        max_model_len=model.llm.max_model_len,
        tokens=tokens,
        token_strs=[model.llm.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in tokens]
        if asked.return_token_strs
        else None,
    )


async def create_text(state: ServerState, body: bytes, _: Caller) -> DetokenizeResponse:
    """Read a body and answer it; ids outside the vocabulary have no text.

    Raises:
        InvalidRequestError: the body is impossible.
    """
    asked = parse_request(DetokenizeRequest, body)
    tokenizer = state.model(asked.model).llm.tokenizer
    return DetokenizeResponse(prompt=await asyncio.to_thread(tokenizer.decode, asked.tokens, False))


def _encode(model: ServedModel, asked: TokenizeRequest) -> list[int]:
    if asked.messages is None:
        assert asked.prompt is not None, "the schema wants one of the two"
        special = asked.add_special_tokens is not False
        return model.llm.prompts.text(asked.prompt) if special else model.llm.tokenizer.encode(asked.prompt)
    conversation = encode_conversation(
        model,
        [message.to_message() for message in asked.messages],
        asked.tools or [],
        asked.chat_template_kwargs or {},
        param="messages",
        add_generation_prompt=asked.add_generation_prompt is not False,
        continue_final_message=bool(asked.continue_final_message),
    )
    return list(conversation.prompt)
