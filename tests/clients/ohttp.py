"""Oblivious HTTP in a few lines over `pyhpke`, which shares no line with the gateway: whole and in pieces (RFC 9458, RFC 9292, chunked draft)."""

import base64
import hashlib
import http.client
import json
import os
import ssl
import struct
from email.utils import formatdate

from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from pyhpke import AEADId, CipherSuite, KDFId, KEMId

MAIL = "ann.lee@example.org"
PLACE = "/.well-known/ohttp-gateway"
SUITE = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM)
ALGORITHMS = struct.pack(">HHH", 0x20, 1, 2)

host, port = os.environ["POSTERN_ADDRESS"].rsplit(":", 1)
tls = ssl.create_default_context(cafile=os.environ["POSTERN_CA"])
tls.load_cert_chain(os.environ["POSTERN_CERT"], os.environ["POSTERN_KEY"])
connection = http.client.HTTPSConnection(host, int(port), context=tls)
chain = x509.load_pem_x509_certificates(open(os.environ["POSTERN_CERT"], "rb").read())
key = serialization.load_pem_private_key(open(os.environ["POSTERN_KEY"], "rb").read(), None)
GATEWAY = os.environ["POSTERN_GATEWAY_ID"]


def ask(method, path, body=None, headers={}):
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response, response.read()


def varint(n):
    return struct.pack(">B", n) if n < 64 else struct.pack(">H", n | 0x4000) if n < 16384 else struct.pack(">I", n | 0x80000000)


def read_varint(data):
    size = 1 << (data[0] >> 6)
    return int.from_bytes(data[:size], "big") & ((1 << (8 * size - 2)) - 1), data[size:]


def string(data):
    return varint(len(data)) + data


def key_config():
    response, listed = ask("GET", PLACE)
    assert response.status == 200 and response.getheader("content-type") == "application/ohttp-keys"
    number, (kem,) = listed[2], struct.unpack(">H", listed[3:5])
    assert kem == 0x20
    return number, SUITE.kem.deserialize_public_key(listed[5:37])


def message(fields, body, path="/v1/chat/completions"):
    control = b"".join(string(part) for part in [b"POST", b"https", b"", path.encode()])
    section = b"".join(string(name) + string(value) for name, value in fields)
    return b"\0" + control + string(section) + string(body) + b"\0"


def signed(enc, number, date, label, body, path="/v1/chat/completions"):
    parts = [b"postern sealed request 1", enc, bytes([number]), GATEWAY.encode(), b"POST", path.encode()]
    parts += [date.encode(), label.encode(), hashlib.sha256(body).digest()]
    text = b"".join(struct.pack(">Q", len(part)) + part for part in parts)
    return struct.pack(">H", 0x0403) + key.sign(text, ec.ECDSA(hashes.SHA256()))


def read_response(plain):
    form, rest = plain[0], plain[1:]
    status, rest = read_varint(rest)
    fields = {}
    if form == 1:
        length, rest = read_varint(rest)
        section, rest = rest[:length], rest[length:]
        while section:
            length, section = read_varint(section)
            name, section = section[:length], section[length:]
            length, section = read_varint(section)
            fields[name.decode()], section = section[:length].decode(), section[length:]
        length, rest = read_varint(rest)
        return status, fields, rest[:length]
    assert form == 3
    while (found := read_varint(rest))[0]:
        name, rest = found[1][: found[0]], found[1][found[0] :]
        length, rest = read_varint(rest)
        fields[name.decode()], rest = rest[:length].decode(), rest[length:]
    rest, body = found[1], b""
    while (found := read_varint(rest))[0]:
        body, rest = body + found[1][: found[0]], found[1][found[0] :]
    return status, fields, body


def response_key(secret, enc, nonce):
    extract = hmac.HMAC(enc + nonce, hashes.SHA256())
    extract.update(secret)
    prk = extract.finalize()
    expand = lambda label, size: HKDFExpand(hashes.SHA256(), size, label).derive(prk)
    return AESGCM(expand(b"key", 32)), int.from_bytes(expand(b"nonce", 12), "big")


def send(label, chunked, question, sign=True, date=None):
    number, public = key_config()
    header = bytes([number]) + ALGORITHMS
    kind = b"message/bhttp chunked request" if chunked else b"message/bhttp request"
    enc, context = SUITE.create_sender_context(public, info=kind + b"\0" + header)
    body, date = json.dumps(question).encode(), date or formatdate(usegmt=True)
    fields = [(b"content-type", b"application/json"), (b"date", date.encode()), (b"postern-label", label.encode())]
    if sign:
        sender = b",".join(base64.b64encode(one.public_bytes(serialization.Encoding.DER)) for one in chain)
        fields += [(b"postern-sender", sender)]
        fields += [(b"postern-signature", base64.b64encode(signed(enc, number, date, label, body)))]
    plain = message(fields, body)
    if chunked:
        sealed = header + enc
        for piece in [plain[:100], plain[100:]]:
            sealed += string(context.seal(piece))
        sealed += b"\0" + context.seal(b"", b"final")
    else:
        sealed = header + enc + context.seal(plain)
    media_type = "message/ohttp-chunked-req" if chunked else "message/ohttp-req"
    response, answer = ask("POST", PLACE, sealed, {"content-type": media_type})
    if response.status != 200:
        return response.status, {}, answer
    assert response.getheader("content-type") == media_type.replace("req", "res"), response.getheaders()
    exported = b"message/bhttp chunked response" if chunked else b"message/bhttp response"
    aead, base = response_key(context.export(exported, 32), enc, answer[:32])
    answer = answer[32:]
    if not chunked:
        return read_response(aead.decrypt(base.to_bytes(12, "big"), answer, b""))
    plain, count = b"", 0
    while True:
        length, answer = read_varint(answer)
        nonce = (base ^ count).to_bytes(12, "big")
        if length == 0:
            return read_response(plain + aead.decrypt(nonce, answer, b"final"))
        plain, answer, count = plain + aead.decrypt(nonce, answer[:length], b""), answer[length:], count + 1


def said(body):
    events = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]", body
    return "".join(json.loads(one)["choices"][0]["delta"].get("content") or "" for one in events[:-1])


ASKED = {"model": "chat", "messages": [{"role": "user", "content": f"Write to {MAIL}"}]}

for chunked in [True, False]:
    for sign in [True, False]:
        status, fields, body = send("internal", chunked, ASKED, sign)
        assert status == 200 and MAIL in json.loads(body)["choices"][0]["message"]["content"], body
        assert fields["postern-label"] == "internal", fields
    status, fields, body = send("public", chunked, ASKED | {"stream": True})
    assert status == 200 and MAIL in said(body), body
    # An answer that is an error is sealed as well.
    status, fields, body = send("nonsense", chunked, ASKED)
    assert status == 400 and json.loads(body)["error"]["code"] == "invalid_header", body
    print("ok", "in pieces" if chunked else "whole")

status, _, body = send("public", True, ASKED, date="Fri, 27 Nov 2020 12:00:00 GMT")
assert status == 400 and json.loads(body)["error"]["code"] == "payload_expired", body
print("ok old")
