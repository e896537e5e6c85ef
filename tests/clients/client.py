"""What applications do with the OpenAI SDK, unmodified, through a gateway."""

import asyncio
import json
import os
import ssl
from array import array
from typing import Literal

import openai
from pydantic import BaseModel

MAIL = "ann.lee@example.org"
ASKED = [{"role": "user", "content": f"Write to {MAIL}"}]
# At the engine on the gateway's machine, which is a real model.
LOCAL = {"Postern-Placement": "local"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}

tls = ssl.create_default_context()
# Through `postern connect` there is neither an authority nor a certificate, but a key.
if "POSTERN_CA" in os.environ:
    tls.load_verify_locations(os.environ["POSTERN_CA"])
    tls.load_cert_chain(os.environ["POSTERN_CERT"], os.environ["POSTERN_KEY"])
reached = {"base_url": os.environ["POSTERN_URL"], "api_key": os.environ.get("POSTERN_API_KEY", "not-used"), "max_retries": 0}
client = openai.OpenAI(**reached, http_client=openai.DefaultHttpxClient(verify=tls))


class Weather(BaseModel):
    city: Literal["Paris", "Rome"]
    rain: bool


def plain():
    answer = client.chat.completions.create(model="chat", messages=ASKED)
    assert MAIL in answer.choices[0].message.content, answer
    assert answer.model == "chat" and answer.usage.total_tokens > 0, answer
    raw = client.chat.completions.with_raw_response.create(model="chat", messages=ASKED)
    assert raw.headers["postern-target"] == "sun" and MAIL in raw.parse().choices[0].message.content


def streamed():
    chunks = list(
        client.chat.completions.create(
            model="chat", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert MAIL in said and chunks[-1].usage.total_tokens > 0, chunks


async def asynchronous():
    async with openai.AsyncOpenAI(**reached, http_client=openai.DefaultAsyncHttpxClient(verify=tls)) as many:
        asked = [many.chat.completions.create(model="chat", messages=ASKED, seed=seed) for seed in range(4)]
        for answer in await asyncio.gather(*asked):
            assert MAIL in answer.choices[0].message.content, answer
        stream = await many.chat.completions.create(model="chat", messages=ASKED, stream=True)
        said = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert MAIL in "".join(said), said


def tools():
    asked = [{"role": "user", "content": "How is the weather in Rome?"}]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(
        model="chat", messages=asked, tools=[WEATHER], tool_choice=choice, max_tokens=60, extra_headers=LOCAL
    )
    said = answer.choices[0].message
    call = said.tool_calls[0]
    assert call.function.name == "get_weather", answer
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome"), answer
    asked += [said.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "It rains."}]
    answer = client.chat.completions.create(model="chat", messages=asked, max_tokens=4, extra_headers=LOCAL)
    assert answer.choices[0].message.content, answer


def structured():
    asked = [{"role": "user", "content": "It rains in Paris."}]
    answer = client.chat.completions.parse(
        model="chat", messages=asked, response_format=Weather, max_tokens=60, extra_headers=LOCAL
    )
    assert isinstance(answer.choices[0].message.parsed, Weather), answer


def embeddings():
    texts = ["A harbour", f"Mail of {MAIL}"]
    answer = client.embeddings.create(model="embed", input=texts)
    assert [len(one.embedding) for one in answer.data] == [8, 8], answer
    assert answer.model == "embed" and answer.usage.prompt_tokens > 0, answer
    numbers = client.embeddings.create(model="embed", input=texts, encoding_format="float")
    packed = [array("f", one.embedding) for one in answer.data]
    assert [array("f", one.embedding) for one in numbers.data] == packed, numbers


def completions():
    answer = client.completions.create(model="chat", prompt=f"Once {MAIL}", max_tokens=5)
    assert MAIL in answer.choices[0].text, answer


def models():
    assert [model.id for model in client.models.list()] == ["chat", "embed"]
    assert client.models.retrieve("embed").id == "embed"


def errors():
    def raised(kind, call, **asked):
        try:
            call(**asked)
        except kind as error:
            return error.status_code, error.code, error.param
        raise AssertionError(f"{kind} was not raised")

    chat, embed = client.chat.completions.create, client.embeddings.create
    assert raised(openai.NotFoundError, chat, model="nobody", messages=ASKED) == (404, "model_not_found", "model")
    assert raised(openai.BadRequestError, embed, model="embed", input=[[1, 2]]) == (400, "tokens_refused", "input")
    classified = {"Postern-Label": "classified"}
    refused = raised(openai.PermissionDeniedError, embed, model="embed", input="Heron", extra_headers=classified)
    assert refused == (403, "no_permitted_target", None), refused


for scene in (plain, streamed, tools, structured, embeddings, completions, models, errors):
    scene()
    print("ok", scene.__name__)
asyncio.run(asynchronous())
print("ok asynchronous")
