// Follows a chat in Node with the bundled src/follow.ts and prints what it reports, a JSON object a line:
// node follow.mjs FOLLOW.JS BACKEND CHAT
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [bundle, backend, chat] = process.argv.slice(2);
globalThis.WebSocket = createRequire(bundle)("ws"); // Node 20 has none
const { Follower, Problem } = await import(pathToFileURL(bundle).href);

function print(kind, data) {
  process.stdout.write(`${JSON.stringify({ kind, ...data })}\n`);
}

const server = {
  async key() {
    const answer = await fetch(`${backend}/chats/${chat}/key`, { method: "POST", headers: { Origin: backend } });
    if (!answer.ok) throw new Problem(answer.status === 503 ? "no_gateway" : "denied", await answer.text());
    const key = await answer.json();
    print("key", { public_key: key.public_key });
    return key;
  },
  async gatewayAnswers() {
    return (await fetch(`${backend}/gateway`)).ok;
  },
};
const view = {
  status: (status, detail) => print("status", { status, detail }),
  state: (state) => print("state", { state: state.state, version: state.version }),
  line: (build, line, index) => print("line", { output: line.output, index }),
  command: (id, event) => print("command", { id, event }),
};
await new Follower(chat, server, view).run();
process.exit(0);
