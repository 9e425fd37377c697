// Follows one chat over NATS: its state, the log of its builds from the first line, and its commands.
// It needs no page: src/page.ts shows what it reports.

import {
  AuthorizationError,
  Empty,
  type Msg,
  type NatsConnection,
  nkeyAuthenticator,
  NoRespondersError,
  PermissionViolationError,
  UserAuthenticationExpiredError,
  wsconnect,
} from "@nats-io/nats-core";
import type {
  ExecExited,
  ExecOutput,
  ExecStarted,
  FrontendKey,
  LinesPage,
  LogBody,
  LogLine as StoredLine,
  StateChanged,
} from "./types";

/** A key of `frontend_credential`, and what the page needs beside it. */
export interface Key extends FrontendKey {
  /** WebSocket addresses of NATS. */
  servers: string[];
  /** How long the key is valid from now on. `expires_at` is a time of the server's clock; the browser's may be wrong. */
  seconds_left: number;
}

/** The page's own server, which holds the key of a chat service. */
export interface Backend {
  /** Obtains a key. Throws a Problem. */
  key(): Promise<Key>;
  /** Says whether a gateway answers. Throws a Problem if the page's server does not. */
  gatewayAnswers(): Promise<boolean>;
}

export type ProblemKind = "no_backend" | "no_gateway" | "denied";

/** Why the page's server returned no key. */
export class Problem extends Error {
  constructor(
    readonly kind: ProblemKind,
    message: string,
  ) {
    super(message);
  }
}

export type Status =
  | "connecting"
  | "live"
  /** Live, but no gateway answers, so the stored lines of the log are still missing. */
  | "log_waits"
  | "no_nats"
  /** NATS admits nobody, because no gateway can check keys. */
  | "no_gateway"
  | "no_backend"
  /** NATS refuses the key, and the page's server does not answer, so nobody knows why. */
  | "refused"
  | "expired"
  /** The last status: the key was revoked. */
  | "revoked"
  /** The last status: the page's server gives no key. */
  | "denied";

export type Line = StoredLine & Required<Pick<StoredLine, "origin" | "output" | "sequence">>;
export type CommandEvent =
  | { kind: "started"; command: ExecStarted }
  | { kind: "output"; command: ExecOutput; missing: number }
  | { kind: "exited"; command: ExecExited };

/** Is told what happens. Text of logs and commands is untrusted. */
export interface View {
  status(status: Status, detail: string): void;
  state(state: StateChanged): void;
  /** A new line of a build's log, which belongs at `index` of the lines of that build reported so far. */
  line(buildId: string, line: Line, index: number): void;
  command(execId: string, event: CommandEvent): void;
}

const NONE = { version: 0, state: "none", previous_state: "none" } as const;
const STATE_STREAM = "$JS.API.DIRECT.GET.WORKSPACED_STATE.workspaced.state.";
const REQUEST_TIMEOUT = 5_000;
const FIRST_DELAY = 200;
const LONGEST_DELAY = 3_000;

export class Follower {
  readonly #chat: Chat;
  readonly #stop = new AbortController();
  #status: Status | undefined;

  constructor(
    private readonly chatId: string,
    private readonly backend: Backend,
    private readonly view: View,
  ) {
    this.#chat = new Chat(chatId, view);
  }

  stop(): void {
    this.#stop.abort();
  }

  /** Follows the chat until `stop`, or until the status is `revoked` or `denied`. */
  async run(): Promise<void> {
    let old: NatsConnection | undefined;
    this.#say("connecting");
    let key: Ending | undefined = await this.#newKey("connecting");
    while (key !== undefined) {
      const opened: NatsConnection | "expired" | "revoked" | undefined = await this.#open(key);
      // The old connection ends only now, so nothing is lost in between. What both delivered is reported once.
      await old?.close();
      old = undefined;
      if (opened === undefined) return;
      if (opened === "revoked") {
        this.#say("revoked");
        return;
      }
      const next: Ending | "expired" | "closed" = opened === "expired" ? opened : await this.#live(opened, key);
      if (opened !== "expired" && this.#stop.signal.aborted) {
        await opened.close();
        return;
      }
      if (next === "expired") {
        this.#say("expired");
        key = await this.#newKey("expired");
      } else if (next === "closed") {
        this.#say("no_nats");
      } else {
        key = next;
        old = opened === "expired" ? undefined : opened;
      }
    }
  }

  #say(status: Status, detail = ""): void {
    this.#status = status;
    this.view.status(status, detail);
  }

  /** Asks the page's server for a key until it gives one; undefined: it denies it, or `stop` was called. */
  async #newKey(because: "connecting" | "expired"): Promise<Ending | undefined> {
    for (const pause = new Backoff(this.#stop.signal); !this.#stop.signal.aborted; await pause.wait()) {
      try {
        return await this.#key();
      } catch (error) {
        const { kind, message } = problem(error);
        if (kind === "denied") {
          this.#say("denied", message);
          return undefined;
        }
        this.#say(because === "expired" ? "expired" : kind, message);
      }
    }
    return undefined;
  }

  async #key(): Promise<Ending> {
    const asked = Date.now();
    const key = await this.backend.key();
    return { ...key, ends: asked + key.seconds_left * 1_000 };
  }

  /** Connects, subscribes and reads what is stored, as often as needed; undefined after `stop` or `denied`. */
  async #open(key: Ending): Promise<NatsConnection | "expired" | "revoked" | undefined> {
    let gatewayAnswered = false;
    for (const pause = new Backoff(this.#stop.signal); !this.#stop.signal.aborted; await pause.wait()) {
      let connection: NatsConnection | undefined;
      try {
        // Each connection begins with the same steps, so this follower connects again itself. The client's own
        // `reconnect` needs `ignoreAuthErrorAbort: true` and `maxReconnectAttempts: -1`: otherwise it gives up
        // when NATS refuses the key twice, as NATS does while no gateway answers.
        connection = await wsconnect({
          servers: key.servers,
          authenticator: nkeyAuthenticator(new TextEncoder().encode(key.seed)),
          inboxPrefix: key.inbox_prefix,
          reconnect: false,
          ignoreClusterUpdates: true,
          timeout: REQUEST_TIMEOUT,
          pingInterval: 20_000,
          maxPingOut: 1,
        });
        await this.#begin(connection);
        return connection;
      } catch (error) {
        await connection?.close().catch(() => undefined);
        if (error instanceof UserAuthenticationExpiredError || key.ends <= Date.now()) return "expired";
        if (error instanceof Error && error.cause instanceof PermissionViolationError) {
          this.#say("denied", "The key does not cover this chat.");
          return undefined;
        }
        if (!(error instanceof AuthorizationError)) {
          gatewayAnswered = false;
          this.#say("no_nats", text(error));
          continue;
        }
        // NATS refuses a key with the same words whether it was revoked or no gateway could check it. It was
        // revoked if a gateway answers both before and after the refusal.
        try {
          const answers = await this.backend.gatewayAnswers();
          if (answers && gatewayAnswered) return "revoked";
          gatewayAnswered = answers;
          if (!answers) this.#say("no_gateway");
        } catch (unknown) {
          gatewayAnswered = false;
          this.#say("refused", text(unknown));
        }
      }
    }
    return undefined;
  }

  /** Subscribes first and reads the state then, so that no change falls between the two. */
  async #begin(connection: NatsConnection): Promise<void> {
    const readLogs = (builds: Iterable<string>): void => {
      for (const build of builds) void this.#readLog(connection, build);
    };
    connection.subscribe(`workspaced.ui.${this.chatId}.>`, {
      callback: (error, message) => {
        if (error === null) readLogs(this.#chat.receive(message));
      },
    });
    await connection.flush();
    const stored = await connection.request(STATE_STREAM + this.chatId, Empty, { timeout: REQUEST_TIMEOUT });
    const missing = stored.headers?.code === 404;
    if (!missing && stored.headers?.hasError) throw new Error(stored.headers.description);
    this.#chat.state(missing ? undefined : stored.json<{ data: StateChanged }>().data);
    this.#say("live");
    readLogs(this.#chat.forget());
  }

  /** Reads the stored lines of a build. A gateway may be away: then again, as long as the connection lasts. */
  async #readLog(connection: NatsConnection, buildId: string): Promise<void> {
    const log = this.#chat.log(buildId);
    if (log.reader === connection) {
      log.readAgain = true;
      return;
    }
    log.reader = connection;
    const pause = new Backoff(this.#stop.signal);
    while (!connection.isClosed() && log.reader === connection) {
      log.readAgain = false;
      const body: LogBody = { chat_id: this.chatId, build_id: buildId, after: log.cursor ?? null };
      try {
        const reply = await connection.request("workspaced.rpc.read_log", JSON.stringify(body), {
          timeout: REQUEST_TIMEOUT,
        });
        const refusal = reply.headers?.get("Nats-Service-Error-Code");
        if (refusal) {
          this.#say("log_waits", `${refusal}: ${reply.headers?.get("Nats-Service-Error")}`);
          if (refusal.startsWith("4") && refusal !== "429") break; // asking again does not help
          await pause.wait();
          continue;
        }
        const page = reply.json<LinesPage>();
        for (const line of page.lines) this.#chat.line(buildId, line);
        if (this.#status === "log_waits") this.#say("live");
        if (page.next !== undefined) log.cursor = page.next;
        else if (!log.readAgain) break;
      } catch (error) {
        if (connection.isClosed()) break;
        this.#say("log_waits", error instanceof NoRespondersError ? "No gateway answers." : text(error));
        await pause.wait();
      }
    }
    if (log.reader === connection) log.reader = undefined;
  }

  /** Follows until the connection is closed, or until it is time for a new key, which it returns. */
  async #live(connection: NatsConnection, key: Ending): Promise<Ending | "expired" | "closed"> {
    const closed = connection.closed().then((error) => {
      const expired = error instanceof UserAuthenticationExpiredError || key.ends <= Date.now();
      return expired ? "expired" : "closed";
    });
    let delay = (key.ends - Date.now()) / 2;
    while (true) {
      const end = await Promise.race([closed, sleep(delay, this.#stop.signal)]);
      if (this.#stop.signal.aborted) return "closed";
      if (end !== undefined) return end;
      try {
        return await this.#key();
      } catch {
        // The key is valid for some time yet; if there is still no new one when it has ended, that is told.
        delay = Math.max(FIRST_DELAY, (key.ends - Date.now()) / 4);
      }
    }
  }
}

interface Ending extends Key {
  /** When the key ends, by this machine's clock. */
  ends: number;
}

/** What is known of the chat: discards what is old or was reported before. */
class Chat {
  #version = -1;
  readonly #logs = new Map<string, BuildLog>();
  readonly #offsets = new Map<string, number>();
  readonly #lastOf = new Map<string, string>();

  constructor(
    private readonly id: string,
    private readonly view: View,
  ) {}

  /** Takes a live message; returns the builds whose stored log has to be read. */
  receive(message: Msg): string[] {
    const [, , , kind, id = "", execId = ""] = message.subject.split(".");
    const { type, data } = parsed(message);
    if (kind === "state") return this.state(data as StateChanged);
    if (kind === "exec") this.#command(execId, type, data);
    if (kind !== "log") return [];
    const isNew = !this.#logs.has(id);
    this.line(id, data);
    // Nodes of a cluster may lose messages between them: then the stored log has what is missing.
    const sequence = message.headers?.get("Nats-Sequence") ?? "";
    const known = this.#lastOf.get(message.subject) ?? sequence;
    this.#lastOf.set(message.subject, sequence);
    const follows = known === sequence || known === message.headers?.get("Nats-Last-Sequence");
    return isNew || !follows ? [id] : [];
  }

  /** Takes a state, undefined for a chat that has none; returns the build whose log has to be read. */
  state(state: StateChanged | undefined): string[] {
    const version = state?.version ?? 0;
    if (version <= this.#version) return [];
    this.#version = version;
    const nothing = { workspace: null, build: null, agent: null, failure: null, deadline: null, cause: null };
    this.view.state(state ?? { chat_id: this.id, ...NONE, ...nothing, stops_at: null });
    const build = state?.build?.id;
    if (build === undefined || this.#logs.has(build)) return [];
    this.log(build);
    return [build];
  }

  log(buildId: string): BuildLog {
    let log = this.#logs.get(buildId);
    if (log === undefined) this.#logs.set(buildId, (log = new BuildLog()));
    return log;
  }

  /** Begins with a new connection; returns the builds whose logs may have lines that were missed. */
  forget(): Iterable<string> {
    this.#lastOf.clear();
    return [...this.#logs.keys()];
  }

  line(buildId: string, data: unknown): void {
    if (!isLine(data)) return;
    const index = this.log(buildId).add(data);
    if (index !== undefined) this.view.line(buildId, data, index);
  }

  #command(execId: string, type: unknown, data: unknown): void {
    const have = this.#offsets.get(execId);
    if (type === "workspaced.exec_started.v1" && have === undefined) {
      this.#offsets.set(execId, 0);
      this.view.command(execId, { kind: "started", command: data as ExecStarted });
    } else if (type === "workspaced.exec_output.v1") {
      const piece = data as ExecOutput;
      if (!(piece.next > (have ?? -1))) return;
      this.#offsets.set(execId, piece.next);
      const missing = Math.max(0, piece.offset - (have ?? 0));
      this.view.command(execId, { kind: "output", command: piece, missing });
    } else if (type === "workspaced.exec_exited.v1" && have !== Infinity) {
      this.#offsets.set(execId, Infinity);
      this.view.command(execId, { kind: "exited", command: data as ExecExited });
    }
  }
}

/** The lines of one build: the provisioner's before those of agents, and each one's by sequence. */
class BuildLog {
  reader: NatsConnection | undefined;
  readAgain = false;
  /** The `next` of the last page that had one. */
  cursor: number | undefined;
  readonly #lines: Line[] = [];
  readonly #known = new Set<string>();

  /** Returns the index of a new line, undefined for one that is known. */
  add(line: Line): number | undefined {
    // Each agent of a build counts for itself, so the text belongs to the identity.
    const identity = JSON.stringify([line.origin, line.sequence, line.output]);
    if (this.#known.has(identity)) return undefined;
    this.#known.add(identity);
    let index = this.#lines.length;
    while (index > 0 && isBefore(line, this.#lines[index - 1]!)) index -= 1;
    this.#lines.splice(index, 0, line);
    return index;
  }
}

/** Returns the type and the data of an event. A program in a workspace may publish anything as its output. */
function parsed(message: Msg): { type: unknown; data: unknown } {
  try {
    const event = message.json<{ type?: unknown; data?: unknown } | null>();
    return { type: event?.type, data: event?.data ?? {} };
  } catch {
    return { type: undefined, data: {} };
  }
}

function isBefore(line: Line, other: Line): boolean {
  if (line.origin !== other.origin) return line.origin === "provisioner";
  return line.sequence < other.sequence;
}

function isLine(data: unknown): data is Line {
  const line = data as Partial<Line> | null;
  return (
    typeof line === "object" &&
    line !== null &&
    (line.origin === "provisioner" || line.origin === "agent") &&
    typeof line.output === "string" &&
    Number.isSafeInteger(line.sequence)
  );
}

/** Growing pauses between attempts. */
class Backoff {
  #delay = FIRST_DELAY;
  constructor(private readonly signal: AbortSignal) {}

  async wait(): Promise<void> {
    const delay = this.#delay * (0.5 + Math.random() / 2);
    this.#delay = Math.min(2 * this.#delay, LONGEST_DELAY);
    await sleep(delay, this.signal);
  }
}

function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener("abort", end);
  });
}

function problem(error: unknown): { kind: ProblemKind; message: string } {
  return error instanceof Problem ? error : { kind: "no_backend", message: text(error) };
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
