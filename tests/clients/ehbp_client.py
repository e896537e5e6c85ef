"""The client of PyPI's `tinfoil-ehbp`, unmodified, through a gateway: plain, streamed, and a key that is not in use."""

import json
import os
import ssl

import httpx
from ehbp import Client
from ehbp.errors import KeyConfigMismatchError

MAIL = "ann.lee@example.org"
ASKED = {"model": "chat", "messages": [{"role": "user", "content": f"Write to {MAIL}"}]}
PATH = "/v1/chat/completions"
LABEL = {"Postern-Label": "internal"}

tls = ssl.create_default_context(cafile=os.environ["POSTERN_CA"])
tls.load_cert_chain(os.environ["POSTERN_CERT"], os.environ["POSTERN_KEY"])
url = "https://" + os.environ["POSTERN_ADDRESS"]
http = httpx.Client(verify=tls, timeout=60)
client = Client.discover(url, http_client=http)

answer = client.post(PATH, json_body=ASKED, headers=LABEL)
assert answer.status_code == 200 and MAIL in answer.json()["choices"][0]["message"]["content"], answer
assert answer.headers["postern-label"] == "internal", answer.headers
print("ok plain")

with client.stream("POST", PATH, json_body=ASKED | {"stream": True}) as answer:
    pieces = list(answer)
events = [line[6:] for line in b"".join(pieces).decode().split("\n") if line.startswith("data: ")]
text = "".join(json.loads(one)["choices"][0]["delta"].get("content") or "" for one in events[:-1])
assert events[-1] == "[DONE]" and MAIL in text and len(pieces) > 2, pieces
print("ok streamed")

# Bodies in pieces, and without any.
answer = client.post(PATH, body=iter([b'{"model": "chat", ', json.dumps(ASKED)[18:].encode()]), headers={"content-type": "application/json"})
assert answer.status_code == 200, answer
assert client.get("/v1/models").json()["object"] == "list"
answer = client.post(PATH, json_body={"model": "chat"})
assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages", answer
print("ok pieces")

stranger = Client.with_public_key_hex(url, "09" + "00" * 31, http_client=http)
try:
    stranger.post(PATH, json_body=ASKED)
    raise SystemExit("a key that is not in use was accepted")
except KeyConfigMismatchError as error:
    assert "not in use" in str(error), error
print("ok unknown key")
