"""A witness (C2SP tlog-witness) with nothing of ours: HTTP and TLS of Python, `cryptography` for Ed25519, consistency proofs of RFC 9162.
Arguments: a folder with `cert.pem` and `key.pem`, and a port or 0. There it reads `logs`, the public keys of the logs that it knows, and
keeps `state.json` and its own `seed`. What is written into `trick` it does instead of what it should."""

import base64
import hashlib
import http.server
import json
import os
import pathlib
import ssl
import struct
import sys
import time

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

FOLDER, NAME = pathlib.Path(sys.argv[1]), "witness.example.org/w1"
DASH = "\u2014"


class Refused(Exception):
    def __init__(self, status, body=b"", kind="text/plain"):
        super().__init__(status)
        self.status, self.body, self.kind = status, body, kind


def seed():
    path = FOLDER / "seed"
    if not path.exists():
        path.write_bytes(os.urandom(32))
    return Ed25519PrivateKey.from_private_bytes(path.read_bytes())


def key_id(name, raw):
    return hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]


def raw_public(secret):
    return b"\x04" + secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def consistent(old, new, old_root, new_root, proof):
    """RFC 9162, section 2.1.4.2."""
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof
    if not proof:
        return False
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    f, s = old - 1, new - 1
    while f & 1:
        f, s = f >> 1, s >> 1
    first = second = path[0]
    for hash_ in path[1:]:
        if s == 0:
            return False
        if f & 1 or f == s:
            first, second = node(hash_, first), node(hash_, second)
            while f and not f & 1:
                f, s = f >> 1, s >> 1
        else:
            second = node(second, hash_)
        f, s = f >> 1, s >> 1
    return s == 0 and first == old_root and second == new_root


def signed_by_a_known_log(note):
    text, signatures = note.rsplit(b"\n\n", 1)
    text += b"\n"
    origin = text.decode().split("\n")[0]
    keys = [line for line in (FOLDER / "logs").read_text().split("\n") if line.startswith(origin + "+")]
    if not keys:
        raise Refused(404)
    for line in signatures.decode().splitlines():
        dash, who, value = line.split(" ")
        value = base64.b64decode(value)
        for key in keys:
            raw = base64.b64decode(key.split("+", 2)[2])
            if (dash, who, value[:4]) == (DASH, origin, key_id(origin, raw)) and raw[0] == 1:
                try:
                    Ed25519PublicKey.from_public_bytes(raw[1:]).verify(value[4:], text)
                    return text, origin
                except InvalidSignature:
                    pass
    raise Refused(403)


def add_checkpoint(body):
    head, note = body.split(b"\n\n", 1)
    old, *proof = head.decode().split("\n")
    old = int(old.removeprefix("old "))
    proof = [base64.b64decode(line) for line in proof]
    text, origin = signed_by_a_known_log(note)
    lines = text.decode().split("\n")
    size, root = int(lines[1]), base64.b64decode(lines[2])
    path = FOLDER / "state.json"
    state = json.loads(path.read_text()) if path.exists() else {}
    known, known_root = state.get(origin, (0, ""))
    if old > size:
        raise Refused(400)
    if old != known or (old == size and root.hex() != known_root):
        raise Refused(409, f"{known}\n".encode(), "text/x.tlog.size")
    if not consistent(old, size, bytes.fromhex(known_root), root, proof):
        raise Refused(422)
    state[origin] = (size, root.hex())
    (FOLDER / "state.new").write_text(json.dumps(state))
    os.replace(FOLDER / "state.new", path)
    return cosignature(seed(), text)


def cosignature(secret, text):
    now = int(time.time())
    signature = secret.sign(f"cosignature/v1\ntime {now}\n".encode() + text)
    value = key_id(NAME, raw_public(secret)) + struct.pack(">Q", now) + signature
    return f"{DASH} {NAME} {base64.b64encode(value).decode()}\n".encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        trick = (FOLDER / "trick").read_text().strip() if (FOLDER / "trick").exists() else ""
        with (FOLDER / "asked").open("a") as asked:
            asked.write(f"{trick or '-'} {body.split(bytes([10]))[0].decode()}\n")
        if trick and self.play(trick, body):
            return
        try:
            assert self.path == "/log/add-checkpoint", self.path
            self.say(200, add_checkpoint(body))
        except Refused as refused:
            self.say(refused.status, refused.body, refused.kind)

    def play(self, trick, body):
        text = body.split(b"\n\n", 1)[1].rsplit(b"\n\n", 1)[0] + b"\n"
        if trick == "wrong-key":
            self.say(200, cosignature(Ed25519PrivateKey.from_private_bytes(b"x" * 32), text))
        elif trick == "other-text":
            self.say(200, cosignature(seed(), b"something else\n"))
        elif trick == "garbage":
            self.say(200, os.urandom(3000))
        elif trick == "huge":
            self.send_response(200)
            self.end_headers()
            for _ in range(4096):
                self.wfile.write(b"x" * 65536)
        elif trick == "hang":
            time.sleep(600)
        elif trick == "close":
            self.connection.close()
        elif trick == "redirect":
            self.send_response(307)
            self.send_header("location", "https://127.0.0.1:1/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()
        elif trick.startswith("knows "):
            self.say(409, trick.removeprefix("knows ").encode() + b"\n", "text/x.tlog.size")
        elif trick.startswith("status "):
            self.say(int(trick.removeprefix("status ")), b"no")
        else:
            return False
        return True

    def say(self, status, body, kind="text/plain"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(FOLDER / "cert.pem", FOLDER / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    raw = raw_public(seed())
    key = f"{NAME}+{key_id(NAME, raw).hex()}+{base64.b64encode(raw).decode()}"
    print(f"witness listening {server.server_address[1]} {key}", flush=True)
    server.serve_forever()


main()
