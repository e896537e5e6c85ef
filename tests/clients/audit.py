"""The log as somebody reads it who has none of our code: files of C2SP tlog-tiles, a public key, `pymerkle` for RFC 6962 and
`cryptography` for Ed25519. Arguments: the folder, the public key, files with proofs."""

import base64
import hashlib
import pathlib
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pymerkle import InmemoryTree, verify_inclusion


def path_of(number):
    parts = [f"{number % 1000:03}"]
    while number >= 1000:
        number //= 1000
        parts.insert(0, f"x{number % 1000:03}")
    return "/".join(parts)


def entries_of(bundle):
    found = []
    while bundle:
        length = int.from_bytes(bundle[:2], "big")
        found.append(bundle[2 : 2 + length])
        assert len(found[-1]) == length, "a bundle is cut"
        bundle = bundle[2 + length :]
    return found


def signed(note, key):
    """The text of a signed note (C2SP signed-note), if `key` signed it."""
    name, key_hash, encoded = key.split("+", 2)
    raw = base64.b64decode(encoded)
    assert raw[0] == 1, "not an Ed25519 key"
    expected = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    assert expected.hex() == key_hash
    text, signatures = note.rsplit(b"\n\n", 1)
    text += b"\n"
    for line in signatures.decode().splitlines():
        dash, who, value = line.split(" ")
        value = base64.b64decode(value)
        if (dash, who, value[:4]) == ("\u2014", name, expected):
            Ed25519PublicKey.from_public_bytes(raw[1:]).verify(value[4:], text)
            return name, text.decode().splitlines()
    raise AssertionError("not signed by this key")


def main():
    folder, key = pathlib.Path(sys.argv[1]), sys.argv[2]
    name, lines = signed((folder / "checkpoint").read_bytes(), key)
    assert lines[0] == name
    size, root = int(lines[1]), base64.b64decode(lines[2])

    tree, numbers = InmemoryTree(algorithm="sha256"), range(size // 256)
    records = [entry for n in numbers for entry in entries_of((folder / "tile/entries" / path_of(n)).read_bytes())]
    if size % 256:
        partial = folder / "tile/entries" / f"{path_of(size // 256)}.p" / str(size % 256)
        records += entries_of(partial.read_bytes())
    for record in records:
        tree.append_entry(record)
    assert len(records) == size
    assert tree.get_root(size) == root, "the root is another"

    hashes = {hashlib.sha256(b"\0" + record).digest(): record for record in records}
    for file in sys.argv[3:]:
        head, checkpoint = pathlib.Path(file).read_bytes().split(b"\n\n", 1)
        first, extra, index, *path = head.decode().splitlines()
        assert first == "c2sp.org/tlog-proof@v1"
        entry, index = base64.b64decode(extra.removeprefix("extra ")), int(index.removeprefix("index "))
        _, lines = signed(checkpoint, key)
        at = int(lines[1])
        # The same proof as another program makes, which counts from 1, and what it says of it.
        theirs = tree.prove_inclusion(index + 1, at)
        ours = [base64.b64decode(line) for line in path]
        assert theirs.path[1:] == ours, "the proof is another"
        verify_inclusion(hashlib.sha256(b"\0" + entry).digest(), base64.b64decode(lines[2]), theirs)
        assert hashes[hashlib.sha256(b"\0" + entry).digest()] == records[index]
    print(f"{size} records, {len(sys.argv) - 3} proofs: good")


main()
