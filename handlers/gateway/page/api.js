// The gateway's HTTP interface: requests, and the one stream of Server-Sent Events of this tab.
import { clock } from "./dom.js";

/** An answer that is no result. `status` 0: the gateway could not be reached. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

let signedOut = () => {};

/** Say what to do when the session has ended. */
export function onSignedOut(act) {
  signedOut = act;
}

/** The command of a terminal: the user's shell. By its text, lists and logs of commands tell it from others. */
export const SHELL = 'for shell in "$SHELL" bash sh; do command -v "$shell" >/dev/null && exec "$shell"; done; : terminal of the page';

/** Whether a session may run commands in the workspaces that it sees. */
export function mayRunCommands(session) {
  return session.role === "operator" || (session.role === "chat" && session.exec);
}

/** Send a request; return the answer's status and JSON. Throws Problem. */
export async function send(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Problem(0, "the gateway can't be reached");
  }
  const date = Date.parse(answer.headers.get("Date") ?? "");
  if (date && Math.abs(date - Date.now()) > 5000) clock.skew = date - Date.now();
  const text = await answer.text();
  let found = null;
  try {
    found = text ? JSON.parse(text) : null;
  } catch {
    throw new Problem(answer.status, `the gateway answered ${answer.status} without JSON`);
  }
  if (!answer.ok) {
    if (answer.status === 401 && !path.startsWith("/page/")) signedOut();
    throw new Problem(answer.status, found?.detail ?? answer.statusText);
  }
  return { status: answer.status, body: found };
}

export async function get(path) {
  return (await send("GET", path)).body;
}

/** Return a path with a query of the values that are not empty. */
export function address(path, query) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

const SILENCE = 40000; // milliseconds without a byte, though the gateway writes every 15 s, after which it is gone

/** Follow chats; reconnect for ever, and resume where the last event was.
 *
 * `on.event(kind, event)` gets each event, `on.begun()` is called whenever a stream begins (also again), and
 * `on.status(text, problem)` says how the connection is: "live" or "reconnecting", and why a stream did not begin.
 * With `presence`, the stream also tells when a client of NATS comes or goes.
 */
export function follow(chats, on, { presence = false } = {}) {
  const query = chats.map((chat) => ["chat", chat]);
  if (presence) query.push(["presence", "true"]);
  const stop = new AbortController();
  run(query.length ? `/v1/stream?${new URLSearchParams(query)}` : "/v1/stream", on, stop.signal);
  return () => stop.abort();
}

async function run(path, on, signal) {
  let lastId = "";
  let failures = 0;
  while (!signal.aborted) {
    let problem = null;
    const silent = new AbortController();
    let silence = setTimeout(() => silent.abort(), SILENCE);
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => silent.abort(), SILENCE);
    };
    try {
      const headers = lastId ? { "Last-Event-ID": lastId } : {};
      const answer = await fetch(path, { headers, signal: AbortSignal.any([signal, silent.signal]), cache: "no-store" });
      if (answer.status === 401) return signedOut();
      if (!answer.ok) throw new Problem(answer.status, (await answer.json()).detail);
      failures = 0;
      on.status("live");
      on.begun?.();
      let end = null;
      await read(answer.body, heard, (kind, id, data) => {
        if (id) lastId = id;
        if (kind === "end") end = JSON.parse(data).reason;
        else if (kind) on.event(kind, JSON.parse(data));
      });
      if (end === "token") return signedOut();
    } catch (error) {
      problem = error instanceof Problem ? error : new Problem(0, "the gateway can't be reached");
    } finally {
      clearTimeout(silence);
    }
    if (signal.aborted) return;
    on.status("reconnecting", problem);
    await pause(Math.min(5000, 150 * 2 ** failures++) * (0.7 + 0.6 * Math.random()), signal); // back-off
  }
}

/** Wait before something is tried again; `signal` ends the wait. */
export function pause(milliseconds, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });
}

/** Read the text of a stream of Server-Sent Events, and hand on each event as soon as it is complete. */
async function read(stream, heard, handle) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      dispatch(rest.slice(0, end), handle);
      rest = rest.slice(end + 2);
    }
  }
}

function dispatch(text, handle) {
  let kind = "";
  let id = "";
  const data = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("id: ")) id = line.slice(4);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  if (data.length) handle(kind, id, data.join("\n"));
}
