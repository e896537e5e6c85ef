// Oblivious HTTP in a few lines over `@hpke/core`, which shares no line with the gateway: whole and in pieces, signed by nobody (RFC 9458, RFC 9292, chunked draft).

import assert from "node:assert/strict";
import { createHmac, createDecipheriv } from "node:crypto";
import { readFileSync } from "node:fs";
import { Aes256Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import { Agent, fetch } from "undici";

const { POSTERN_ADDRESS, POSTERN_CA, POSTERN_CERT, POSTERN_KEY } = process.env;
const connect = { ca: readFileSync(POSTERN_CA), cert: readFileSync(POSTERN_CERT), key: readFileSync(POSTERN_KEY) };
const dispatcher = new Agent({ connect });
const place = `https://${POSTERN_ADDRESS}/.well-known/ohttp-gateway`;
const suite = new CipherSuite({ kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead: new Aes256Gcm() });
const mail = "ann.lee@example.org";
const bytes = (text) => new TextEncoder().encode(text);
const join = (...parts) => Buffer.concat(parts.map((part) => Buffer.from(part)));

const varint = (n) => {
  const out = Buffer.alloc(n < 64 ? 1 : n < 16384 ? 2 : 4);
  out.length === 1 ? out.writeUInt8(n) : out.length === 2 ? out.writeUInt16BE(n | 0x4000) : out.writeUInt32BE(n + 0x80000000);
  return out;
};
const string = (data) => join(varint(data.length), data);
const reader = (data) => ({
  data,
  varint() {
    const size = 1 << (this.data[0] >> 6);
    const n = Number(BigInt("0x" + this.data.subarray(0, size).toString("hex")) & ((1n << BigInt(8 * size - 2)) - 1n));
    this.data = this.data.subarray(size);
    return n;
  },
  take(size) {
    const taken = this.data.subarray(0, size);
    this.data = this.data.subarray(size);
    return taken;
  },
});

function responseOf(plain) {
  const read = reader(plain);
  const form = read.take(1)[0];
  const status = read.varint();
  if (form === 1) {
    read.take(read.varint());
    return { status, body: read.take(read.varint()) };
  }
  for (let length; (length = read.varint()); ) {
    read.take(length);
    read.take(read.varint());
  }
  const content = [];
  for (let length; (length = read.varint()); ) content.push(read.take(length));
  return { status, body: join(...content) };
}

const hmac = (key, ...data) => data.reduce((mac, part) => mac.update(part), createHmac("sha256", key)).digest();

function opener(secret, enc, nonce) {
  const prk = hmac(join(enc, nonce), secret);
  const key = hmac(prk, "key", Buffer.from([1]));
  const base = hmac(prk, "nonce", Buffer.from([1])).subarray(0, 12);
  let count = 0;
  return (sealed, aad = "") => {
    const iv = Buffer.from(base);
    iv.writeUInt32BE((iv.readUInt32BE(8) ^ count++) >>> 0, 8);
    const cipher = createDecipheriv("aes-256-gcm", key, iv);
    cipher.setAAD(bytes(aad));
    cipher.setAuthTag(sealed.subarray(-16));
    return join(cipher.update(sealed.subarray(0, -16)), cipher.final());
  };
}

async function send(asked, pieces) {
  const list = Buffer.from(await (await fetch(place, { dispatcher })).arrayBuffer());
  const header = join([list[2]], [0, 0x20, 0, 1, 0, 2]);
  const recipientPublicKey = await suite.kem.deserializePublicKey(list.subarray(5, 37));
  const kind = pieces ? "message/bhttp chunked request\0" : "message/bhttp request\0";
  const context = await suite.createSenderContext({ recipientPublicKey, info: join(bytes(kind), header) });
  const fields = { "content-type": "application/json", date: new Date().toUTCString() };
  const section = join(...Object.entries(fields).flat().map((text) => string(bytes(text))));
  const control = join(...["POST", "https", "", "/v1/chat/completions"].map((text) => string(bytes(text))));
  const plain = join([0], control, string(section), string(bytes(JSON.stringify(asked))), [0]);
  const sealed = [header, context.enc];
  if (pieces) {
    for (const piece of [plain.subarray(0, 9), plain.subarray(9)]) sealed.push(string(Buffer.from(await context.seal(piece))));
    sealed.push([0], Buffer.from(await context.seal(bytes(""), bytes("final"))));
  } else {
    sealed.push(Buffer.from(await context.seal(plain)));
  }
  const type = pieces ? "message/ohttp-chunked-req" : "message/ohttp-req";
  const options = { method: "POST", body: join(...sealed.map((part) => Buffer.from(part))), headers: { "content-type": type } };
  const answer = await fetch(place, { dispatcher, ...options });
  assert.equal(answer.status, 200);
  assert.equal(answer.headers.get("content-type"), type.replace("req", "res"));
  const read = reader(Buffer.from(await answer.arrayBuffer()));
  const exported = pieces ? "message/bhttp chunked response" : "message/bhttp response";
  const open = opener(Buffer.from(await context.export(bytes(exported), 32)), Buffer.from(context.enc), read.take(32));
  if (!pieces) return responseOf(open(read.data));
  const opened = [];
  for (let length; (length = read.varint()); ) opened.push(open(read.take(length)));
  opened.push(open(read.data, "final"));
  return { ...responseOf(join(...opened)), count: opened.length };
}

const asked = { model: "chat", messages: [{ role: "user", content: `Write to ${mail}` }] };
for (const pieces of [true, false]) {
  const { status, body } = await send(asked, pieces);
  assert.equal(status, 200);
  assert.ok(JSON.parse(body).choices[0].message.content.includes(mail), String(body));
  const streamed = await send({ ...asked, stream: true }, pieces);
  assert.ok(String(streamed.body).endsWith("data: [DONE]\n\n"), String(streamed.body));
  assert.ok(!pieces || streamed.count > 4, "one by one");
  console.log("ok", pieces ? "in pieces" : "whole");
}
