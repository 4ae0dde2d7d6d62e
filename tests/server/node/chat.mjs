// A streamed conversation of several turns through the openai package; the answers are printed as JSON.
import OpenAI from "openai";

const [baseURL, model, ...questions] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [];
const answers = [];
for (const content of questions) {
  messages.push({ role: "user", content });
  const stream = await client.chat.completions.create({ model, messages, stream: true, temperature: 0 });
  let answer = "";
  for await (const chunk of stream) answer += chunk.choices[0]?.delta?.content ?? "";
  messages.push({ role: "assistant", content: answer });
  answers.push(answer);
}
console.log(JSON.stringify(answers));
