// What applications do with the OpenAI SDK for Node, unmodified, through a gateway.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { Agent } from "undici";

const mail = "ann.lee@example.org";
const messages = [{ role: "user", content: `Write to ${mail}` }];
// At the engine on the gateway's machine, which is a real model.
const local = { headers: { "Postern-Placement": "local" } };
const city = { type: "string", enum: ["Paris", "Rome"] };
const shape = (properties) => ({
  type: "object",
  properties,
  required: Object.keys(properties),
  additionalProperties: false,
});

const { POSTERN_URL, POSTERN_CA, POSTERN_CERT, POSTERN_KEY } = process.env;
const files = () => ({ ca: readFileSync(POSTERN_CA), cert: readFileSync(POSTERN_CERT), key: readFileSync(POSTERN_KEY) });
// Through `postern connect` there is neither an authority nor a certificate, but a key.
const dispatcher = new Agent({ connect: POSTERN_CA ? files() : {} });
const apiKey = process.env.POSTERN_API_KEY ?? "not-used";
const client = new OpenAI({ baseURL: POSTERN_URL, apiKey, maxRetries: 0, fetchOptions: { dispatcher } });

const scenes = {
  async plain() {
    const { data, response } = await client.chat.completions.create({ model: "chat", messages }).withResponse();
    assert.ok(data.choices[0].message.content.includes(mail), JSON.stringify(data));
    assert.equal(data.model, "chat");
    assert.ok(data.usage.total_tokens > 0);
    assert.equal(response.headers.get("postern-target"), "sun");
  },

  async streamed() {
    const options = { stream: true, stream_options: { include_usage: true } };
    let [said, usage] = ["", null];
    for await (const chunk of await client.chat.completions.create({ model: "chat", messages, ...options })) {
      said += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.ok(said.includes(mail) && usage.total_tokens > 0, said);
  },

  async tools() {
    const parameters = shape({ city });
    const tool = { type: "function", function: { name: "get_weather", description: "The weather.", parameters } };
    const asked = [{ role: "user", content: "How is the weather in Rome?" }];
    const tool_choice = { type: "function", function: { name: "get_weather" } };
    const body = { model: "chat", messages: asked, tools: [tool], tool_choice, max_tokens: 60 };
    const answer = await client.chat.completions.create(body, local);
    const call = answer.choices[0].message.tool_calls[0];
    assert.equal(call.function.name, "get_weather");
    assert.ok(city.enum.includes(JSON.parse(call.function.arguments).city), JSON.stringify(answer));
  },

  async structured() {
    const schema = shape({ city, rain: { type: "boolean" } });
    const response_format = { type: "json_schema", json_schema: { name: "weather", strict: true, schema } };
    const asked = [{ role: "user", content: "It rains in Paris." }];
    const body = { model: "chat", messages: asked, response_format, max_tokens: 60 };
    const answer = await client.chat.completions.parse(body, local);
    const said = JSON.parse(answer.choices[0].message.content);
    assert.ok(city.enum.includes(said.city) && typeof said.rain === "boolean", JSON.stringify(said));
  },

  async embeddings() {
    const input = ["A harbour", `Mail of ${mail}`];
    const answer = await client.embeddings.create({ model: "embed", input });
    assert.deepEqual(answer.data.map((one) => one.embedding.length), [8, 8]);
    assert.ok(answer.model === "embed" && answer.usage.prompt_tokens > 0);
    const numbers = await client.embeddings.create({ model: "embed", input, encoding_format: "float" });
    assert.deepEqual(numbers.data.map((one) => one.embedding.map(Math.fround)), answer.data.map((one) => one.embedding));
  },

  async completions() {
    const answer = await client.completions.create({ model: "chat", prompt: `Once ${mail}`, max_tokens: 5 });
    assert.ok(answer.choices[0].text.includes(mail), JSON.stringify(answer));
  },

  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert.deepEqual(names, ["chat", "embed"]);
  },

  async errors() {
    const raised = async (promise) => promise.then(() => assert.fail("nothing was raised"), (error) => error);
    const unknown = await raised(client.chat.completions.create({ model: "nobody", messages }));
    assert.ok(unknown instanceof OpenAI.NotFoundError, String(unknown));
    assert.deepEqual([unknown.status, unknown.code, unknown.param], [404, "model_not_found", "model"]);
    const tokens = await raised(client.embeddings.create({ model: "embed", input: [[1, 2]] }));
    assert.ok(tokens instanceof OpenAI.BadRequestError, String(tokens));
    assert.equal(tokens.code, "tokens_refused");
  },
};

for (const [name, scene] of Object.entries(scenes)) {
  await scene();
  console.log("ok", name);
}
await dispatcher.close();
