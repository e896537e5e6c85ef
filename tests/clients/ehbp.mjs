// The client of npm's `ehbp`, unmodified, through a gateway: plain, streamed, and a key that is not in use.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createTransport, Identity, KeyConfigMismatchError, Transport } from "ehbp";
import { Agent, setGlobalDispatcher } from "undici";

const { POSTERN_ADDRESS, POSTERN_CA, POSTERN_CERT, POSTERN_KEY } = process.env;
const connect = { ca: readFileSync(POSTERN_CA), cert: readFileSync(POSTERN_CERT), key: readFileSync(POSTERN_KEY) };
setGlobalDispatcher(new Agent({ connect }));
const mail = "ann.lee@example.org";
const url = `https://${POSTERN_ADDRESS}/v1/chat/completions`;
const asked = { model: "chat", messages: [{ role: "user", content: `Write to ${mail}` }] };
const headers = { "content-type": "application/json", "postern-label": "internal" };

const transport = await createTransport(`https://${POSTERN_ADDRESS}`);
const answer = await transport.post(url, JSON.stringify(asked), { headers });
const said = await answer.json();
assert.ok(said.choices[0].message.content.includes(mail), JSON.stringify(said));
assert.equal(answer.headers.get("postern-label"), "internal");
console.log("ok plain");

const stream = await transport.post(url, JSON.stringify({ ...asked, stream: true }), { headers });
let [text, pieces] = ["", 0];
for await (const piece of stream.body) {
  text += new TextDecoder().decode(piece);
  pieces += 1;
}
assert.ok(text.endsWith("data: [DONE]\n\n") && pieces > 2, text);
console.log("ok streamed");

const stranger = new Transport(await Identity.fromPublicKeyHex("09" + "00".repeat(31)), POSTERN_ADDRESS);
await assert.rejects(stranger.post(url, JSON.stringify(asked), { headers }), KeyConfigMismatchError);
console.log("ok unknown key");
