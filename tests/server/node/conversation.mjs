// A conversation through the openai package; what it saw is printed as JSON.
import OpenAI from "openai";

const [baseURL] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const seen = {};

const messages = [{ role: "user", content: "hello" }];
const first = await client.chat.completions.create({ model: "fake", messages });
seen.first = first.choices[0].message.content;

messages.push(first.choices[0].message, { role: "user", content: "again" });
const stream = await client.chat.completions.create({
  model: "fake",
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
seen.second = "";
for await (const chunk of stream) {
  seen.second += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) seen.usage = chunk.usage.total_tokens;
  if (chunk.choices[0]?.finish_reason) seen.finish = chunk.choices[0].finish_reason;
}

const helper = client.chat.completions.stream({ model: "fake", messages: [{ role: "user", content: "llama 🦙" }] });
seen.helper = (await helper.finalMessage()).content;

seen.completion = (await client.completions.create({ model: "fake", prompt: "grass" })).choices[0].text;
seen.models = (await client.models.list()).data.map((model) => model.id);

try {
  await client.chat.completions.create({ model: "fake", messages, temperature: 3 });
} catch (error) {
  seen.error = [error.constructor.name, error.status, error.param];
}
try {
  await client.chat.completions.create({ model: "other", messages });
} catch (error) {
  seen.missing = [error.constructor.name, error.code];
}

console.log(JSON.stringify(seen));
