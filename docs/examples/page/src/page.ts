// The page: shows what src/follow.ts reports of the chat that the address names (?chat=<uuid>).
// Text from workspaces goes into the page as text only (textContent), never as HTML.

import { type Backend, Follower, type Key, Problem, type ProblemKind, type Status, type View } from "./follow";

const WORDS: Record<Status, string> = {
  connecting: "Connecting…",
  live: "Live.",
  log_waits: "Live, but older lines of the log can't be read yet. Trying again…",
  no_nats: "NATS can't be reached. Trying again…",
  no_gateway: "No gateway answers, so NATS can't check the key. Trying again…",
  no_backend: "This page's server can't be reached. Trying again…",
  refused: "NATS refuses the key, and this page's server can't be asked why. Trying again…",
  expired: "The key has expired. Asking for a new one…",
  revoked: "The key was revoked. Reload the page to ask for a new one.",
  denied: "This chat can't be followed with this page.",
};

function element(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found;
}

function added(parent: HTMLElement, tag: string, text = "", className = ""): HTMLElement {
  const child = document.createElement(tag);
  child.textContent = text;
  child.className = className;
  parent.append(child);
  return child;
}

/** Removes escape sequences of terminals and control characters. */
function plain(output: string): string {
  return String(output)
    .replace(/\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])/g, "")
    .replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g, "");
}

class Page implements View {
  readonly #logs = new Map<string, { title: HTMLElement; lines: HTMLElement }>();
  readonly #commands = new Map<string, HTMLElement>();
  readonly #titles = new Map<string, string>();

  status(status: Status, detail: string): void {
    const shown = element("status");
    shown.dataset["status"] = status;
    shown.textContent = detail ? `${WORDS[status]} (${detail})` : WORDS[status];
  }

  state(state: Parameters<View["state"]>[0]): void {
    element("state").textContent = state.state.replaceAll("_", " ");
    element("version").textContent = String(state.version);
    element("workspace").textContent = state.workspace?.name ?? "none";
    element("agent").textContent = state.agent === null ? "none" : `${state.agent.name}: ${state.agent.status}`;
    element("failure").textContent = state.failure === null ? "" : state.failure.message;
    element("stops").textContent = state.stops_at === null ? "" : new Date(state.stops_at).toLocaleString();
    if (state.build !== null) {
      const title = `Build ${state.build.number}: ${state.build.transition}`;
      this.#titles.set(state.build.id, title);
      const log = this.#logs.get(state.build.id);
      if (log !== undefined) log.title.textContent = title; // its first line came before its state
    }
  }

  line(buildId: string, line: Parameters<View["line"]>[1], index: number): void {
    let log = this.#logs.get(buildId);
    if (log === undefined) {
      const title = added(element("logs"), "h3", this.#titles.get(buildId) ?? "Build");
      log = { title, lines: added(element("logs"), "pre") };
      this.#logs.set(buildId, log);
    }
    const shown = document.createElement("span");
    shown.textContent = plain(line.output);
    shown.className = line.level === "error" || line.level === "warn" ? line.level : "";
    log.lines.insertBefore(shown, log.lines.children[index] ?? null);
  }

  command(execId: string, event: Parameters<View["command"]>[1]): void {
    let shown = this.#commands.get(execId);
    if (shown === undefined) {
      element("commands").hidden = false;
      added(element("commands"), "h3", event.kind === "started" ? `$ ${plain(event.command.command)}` : "A command");
      shown = added(element("commands"), "pre");
      this.#commands.set(execId, shown);
    }
    if (event.kind === "output") {
      if (event.missing > 0) added(shown, "i", `[${event.missing} bytes were not received]\n`);
      added(shown, "span", plain(event.command.output));
    } else if (event.kind === "exited") {
      const { exit_code, signal, reason } = event.command;
      added(shown, "i", `[exit ${exit_code ?? signal ?? reason ?? ""}]\n`);
    }
  }
}

class OwnServer implements Backend {
  constructor(private readonly chatId: string) {}

  async key(): Promise<Key> {
    const answer = await this.#fetch(`/chats/${encodeURIComponent(this.chatId)}/key`, { method: "POST" });
    if (answer.ok) return (await answer.json()) as Key;
    const kind: ProblemKind =
      answer.status === 503 ? "no_gateway" : answer.status >= 500 ? "no_backend" : "denied";
    throw new Problem(kind, await answer.text());
  }

  async gatewayAnswers(): Promise<boolean> {
    const answer = await this.#fetch("/gateway");
    if (answer.ok) return true;
    if (answer.status === 503) return false;
    throw new Problem("no_backend", await answer.text());
  }

  #fetch(path: string, options: RequestInit = {}): Promise<Response> {
    return fetch(path, { ...options, cache: "no-store", signal: AbortSignal.timeout(15_000) });
  }
}

const chatId = new URLSearchParams(location.search).get("chat") ?? "";
const page = new Page();
element("chat").textContent = chatId;
if (chatId === "") page.status("denied", "Name a chat in the address: ?chat=<chat_id>");
else void new Follower(chatId, new OwnServer(chatId), page).run();
