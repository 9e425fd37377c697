// The terminal: a shell in a chat's workspace. The shell belongs to the workspace: it outlives this page, and its id in the
// address lets a page that is loaded again, or another tab, go on with it.
import { follow, get, mayRunCommands, onSignedOut, pause, Problem, send, SHELL } from "./api.js";
import { applyTheme, fill, h, localTime, onFrame, plain, setText, withoutBytes } from "./dom.js";
import { encoded, pasted } from "./keys.js";
import { KEPT, runs, Screen } from "./screen.js";
import { acceptsCommands, nameOf } from "./states.js";

const LONGEST = 12 * 3600; // seconds after which a forgotten shell ends: it keeps its workspace running
const PIECE = 32768; // bytes of input in one request
const LARGEST_PASTE = 1048576;
const WAITING = 100; // pieces of output that wait while older ones are read

/** For phones: what a button shows, its name, and the key that it presses. */
const KEYS = [
  ["Esc", "Escape", { key: "Escape" }],
  ["Tab", "Tab", { key: "Tab" }],
  ["^C", "Control C", { key: "c", ctrlKey: true }],
  ["←", "Arrow left", { key: "ArrowLeft" }],
  ["↑", "Arrow up", { key: "ArrowUp" }],
  ["↓", "Arrow down", { key: "ArrowDown" }],
  ["→", "Arrow right", { key: "ArrowRight" }],
];

/** Next step of a call that the workspace cannot take -> what is wrong and what to do, for people. */
const UNAVAILABLE = {
  create_workspace: "This chat has no workspace. Create one in the chat's view; this page goes on when it is ready.",
  start_workspace: "The workspace does not run. Start it in the chat's view; this page goes on when it is ready.",
  stop_workspace: "The workspace's agent is lost. If it does not come back, stop the workspace in the chat's view, then start it.",
};
const ENDED = {
  stopped: "The workspace was stopped, and the shell with it.",
  timeout: "The shell ran for 12 hours, which is the limit, and was ended.",
  lost: "The workspace lost the shell: how it ended is not known.",
};

/** An answer of a tool that is an error. */
class Refused extends Error {}

const FAR = Number.MAX_SAFE_INTEGER;
const HISTORY = 524288; // bytes of older output that are read: more than the lines that are kept
const BEHIND = 1048576; // bytes by which the output may be ahead of what is shown, before a part is left out

class Terminal {
  constructor() {
    [this.chatId = "", this.execId = ""] = location.hash.slice(1).split("/");
    this.next = 0; // the byte of the output up to which it is shown
    this.newest = 0; // the one where the newest piece of the stream begins
    this.early = [];
    this.outbox = [];
    this.changes = 0; // states of the chat that have come
    this.waiting = []; // calls that wait for the next one
    this.reachable = new AbortController(); // aborted when the gateway can be reached again
    this.status = "starting";
    this.draw = onFrame(() => this.render());
  }

  async start() {
    applyTheme(localStorage.getItem("theme") ?? "system");
    window.addEventListener("hashchange", () => location.reload());
    window.addEventListener("storage", () => applyTheme(localStorage.getItem("theme") ?? "system"));
    onSignedOut(() => this.signedOut());
    this.mount();
    try {
      const session = await get("/page/session");
      if (!mayRunCommands(session)) return this.say("Your session has no right to run commands in this workspace.", "bad");
      const chat = await get(`/v1/chats/${this.chatId}`);
      this.name(chat);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (problem.status === 401) return this.signedOut();
      return this.say(problem.message, "bad", h("button.small", { onclick: () => location.reload() }, "Try again"));
    }
    follow([this.chatId], {
      event: (kind, event) => this.event(kind, event),
      status: (text) => {
        setText(this.connection, text);
        this.connection.className = `live ${text}`;
      },
      begun: () => {
        this.reachable.abort(); // what waits for the gateway tries again at once
        this.reachable = new AbortController();
        this.catchUp();
      },
    });
    if (this.execId) await this.attach(this.execId);
    else await this.choose();
  }

  signedOut() {
    this.stopped = true;
    this.say("Your session has ended. The shell goes on: sign in, then open the terminal again.", "bad", h("a.button.small", { href: `/#/chat/${this.chatId}` }, "Sign in"));
  }

  // -- the view ----------------------------------------------------------------------------------

  mount() {
    this.title = h("h1", "Terminal");
    this.connection = h("span.live", { role: "status" }, "connecting");
    this.back = h("a", { href: `/#/chat/${this.chatId}` }, "← Chat");
    this.end = h("button.small", { hidden: true, title: "Ends the shell and what runs in it", onclick: () => this.hangUp() }, "End shell");
    fill(document.getElementById("bar"), this.back, this.title, h("span.grow"), this.connection, this.end);
    this.notice = h("div.notice", { role: "status" });
    this.past = h("div.past");
    this.rows = h("div.rows");
    this.output = h("div.output", { role: "region", tabIndex: 0, "aria-label": "Terminal output" }, this.past, this.rows);
    this.keys = h("textarea.keys", {
      "aria-label": "Terminal input",
      "aria-describedby": "leave",
      autocomplete: "off",
      autocapitalize: "off",
      autocorrect: "off",
      spellcheck: "false",
      rows: 1,
    });
    this.probe = h("span.probe", { "aria-hidden": "true" }, "0".repeat(100));
    this.spoken = h("div.spoken", { role: "log", "aria-label": "New output" });
    this.box = h("div.screenbox", this.output, this.keys, this.probe);
    this.control = h("button", { "aria-label": "Control, for the next character", "aria-pressed": "false", onclick: () => this.holdControl(!this.holdsControl) }, "Ctrl");
    fill(
      document.getElementById("main"),
      this.notice,
      this.box,
      h(
        "div.keybar",
        { role: "group", "aria-label": "Keys" },
        KEYS.slice(0, 2).map((key) => this.button(...key)),
        this.control,
        KEYS.slice(2).map((key) => this.button(...key)),
      ),
      h("p.hint", { id: "leave" }, h("kbd", "Ctrl+M"), " leaves the terminal. Closing this tab leaves the shell running, for 12 hours at most: Terminal in the chat's view offers it again."),
      this.spoken,
    );
    this.screen = new Screen(80, 24, (text) => this.reply(text));
    this.listen();
    this.fit();
    this.keys.focus();
  }

  listen() {
    const { keys, output, box } = this;
    keys.addEventListener("keydown", (event) => this.onKey(event));
    keys.addEventListener("input", (event) => event.isComposing || this.takeTyped());
    keys.addEventListener("compositionend", () => this.takeTyped());
    keys.addEventListener("beforeinput", (event) => {
      // Keyboards of phones send no keys for these.
      const key = { deleteContentBackward: "\u007f", insertLineBreak: "\r" }[event.inputType];
      if (!key || keys.value) return;
      event.preventDefault();
      this.type(key);
    });
    keys.addEventListener("paste", (event) => {
      event.preventDefault();
      this.paste(event.clipboardData.getData("text/plain"));
    });
    for (const kind of ["focus", "blur"]) keys.addEventListener(kind, () => box.classList.toggle("typing", kind === "focus"));
    output.addEventListener("scroll", () => (this.atEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 24));
    output.addEventListener("mouseup", () => getSelection().isCollapsed && keys.focus());
    output.addEventListener("keydown", (event) => {
      const typed = event.key.length === 1 && event.key !== " ";
      if (typed && !event.ctrlKey && !event.metaKey && !event.altKey) keys.focus(); // the key goes there
    });
    new ResizeObserver(() => this.fit()).observe(output);
    // Of two tabs with one shell, the one in use decides its size.
    window.addEventListener("focus", () => this.sendSize());
    this.atEnd = true;
  }

  name(chat) {
    const name = chat.workspace ? nameOf(chat) : "No workspace";
    setText(this.title, name);
    document.title = `Terminal · ${name}`;
  }

  /** Show what is wrong or to be chosen above the terminal; without a text, nothing. */
  say(text, kind = "", ...more) {
    const key = `${kind}${text}`;
    if (this.said === key) return;
    this.said = key;
    this.notice.className = `notice ${kind}`;
    fill(this.notice, text ? h("span", text) : null, ...more);
  }

  render() {
    const { screen } = this;
    const left = screen.takeLeft().slice(-KEPT);
    this.past.append(...left.map((line) => this.element(line, line.chars.length)));
    while (this.past.childElementCount > KEPT) this.past.firstElementChild.remove();
    while (this.rows.childElementCount > screen.rows) this.rows.lastElementChild.remove();
    while (this.rows.childElementCount < screen.rows) this.rows.append(h("div.tline"));
    screen.lines.forEach((line, row) => {
      const element = this.rows.children[row];
      if (element.line === line && !line.changed) return;
      const cursor = row === screen.row && screen.shown ? screen.col : -1;
      this.element(line, screen.cols, element, cursor);
      element.line = line;
      line.changed = false;
    });
    if (this.atEnd) this.output.scrollTop = this.output.scrollHeight;
    this.placeKeys();
  }

  element(line, cols, element = h("div.tline"), cursor = -1) {
    fill(
      element,
      runs(line, cols, cursor).map(([text, classes]) => {
        if (!classes) return text;
        const span = document.createElement("span");
        span.className = classes;
        span.textContent = text;
        return span;
      }),
    );
    return element;
  }

  /** Keep the input where the cursor is, because input methods show there what is being composed. */
  placeKeys() {
    const { screen, keys, cell } = this;
    keys.style.left = `${10 + screen.col * cell.width}px`;
    keys.style.top = `${Math.min(6 + screen.row * cell.height, this.box.clientHeight - 24)}px`;
  }

  fit() {
    const box = this.probe.getBoundingClientRect();
    this.cell = { width: box.width / 100 || 8, height: box.height || 18 };
    const cols = Math.max(2, Math.floor((this.output.clientWidth - 12) / this.cell.width));
    const rows = Math.max(2, Math.floor((this.output.clientHeight - 12) / this.cell.height));
    if (cols === this.screen.cols && rows === this.screen.rows) return;
    this.screen.resize(cols, rows);
    this.draw();
    this.sendSize();
  }

  /** Let screen readers say the lines that were written, together and not too many of them. */
  speak(text) {
    this.unspoken = ((this.unspoken ?? "") + text).slice(-4096);
    clearTimeout(this.speaking);
    this.speaking = setTimeout(() => {
      const lines = this.unspoken.split("\n").slice(-12);
      this.unspoken = "";
      if (!this.screen.isAlternate) fill(this.spoken, plain(lines.join("\n")));
    }, 400);
  }

  // -- the shell ---------------------------------------------------------------------------------

  /** Offer the shells of this page that run in the workspace; without any, start one. */
  async choose() {
    if (history.state?.call_id) return this.open();
    const listed = await this.call("process_list", {}, (error) => this.say(error.message, "bad"));
    const running = (listed?.processes ?? []).filter((process) => process.status === "running" && process.command === SHELL);
    if (!listed) return;
    if (!running.length) return this.open();
    const begin = (act) => () => (this.say(""), this.keys.focus(), act());
    this.say(
      running.length === 1 ? "A shell runs in this workspace. It may be open in another tab." : `${running.length} shells run in this workspace. They may be open in other tabs.`,
      "",
      h(
        "ul",
        running.map((process) => h("li", h("button.small.primary", { onclick: begin(() => this.attach(process.exec_id)) }, `Go on with the one of ${localTime(process.started_at)}`))),
        h("li", h("button.small", { onclick: begin(() => this.open()) }, "New shell")),
      ),
    );
  }

  /** Start a shell. The call is kept in the history of the tab, so that a reload at this moment starts no second one. */
  async open() {
    const { cols, rows } = this.screen;
    const asked = history.state?.call_id ? history.state : { call_id: identifier(), pty: { cols, rows } };
    history.replaceState(asked, "");
    const args = { command: SHELL, pty: asked.pty, timeout_seconds: LONGEST, wait_seconds: 0 };
    const again = h("button.small", { onclick: () => location.reload() }, "Try again");
    const result = await this.call("execute", args, (error) => (history.replaceState(null, ""), this.say(error.message, "bad", again)), asked.call_id);
    if (!result) return;
    this.fresh = true;
    await this.attach(result.exec_id);
  }

  async attach(execId) {
    this.execId = execId;
    this.status = "running";
    history.replaceState(null, "", `#${this.chatId}/${execId}`);
    this.end.hidden = false;
    this.sendSize();
    if (!this.fresh) await this.skipOld();
    await this.catchUp();
  }

  event(kind, event) {
    if (kind === "state") return this.changed(event.data);
    if (kind !== "exec" || event.data.exec_id !== this.execId) return;
    if (event.type.includes("exec_output")) this.piece(event.data);
    else if (event.type.includes("exec_exited")) this.catchUp();
  }

  /** A state of the chat has come: what waits for the workspace tries again. */
  changed(chat) {
    const before = this.accepts;
    this.accepts = acceptsCommands(chat);
    this.changes += 1;
    this.name(chat);
    for (const go of this.waiting.splice(0)) go();
    if (this.status !== "running") return;
    if (this.accepts && before === false) this.say("");
    if (!this.accepts) this.say("The workspace takes no input now: it is not running, or its agent is away. This page goes on when it does.", "bad", this.toChat());
    if (before !== undefined) this.catchUp();
  }

  toChat() {
    return h("a", { href: `/#/chat/${this.chatId}` }, "Open the chat");
  }

  /** Show a piece of output that the stream has brought. */
  piece({ offset, next, output }) {
    this.newest = Math.max(this.newest, offset);
    if (this.reading) {
      if (this.early.length < WAITING) this.early.push({ offset, next, output });
      else this.again = true;
    } else if (offset > this.next) this.catchUp(); // the stream left something out
    else this.show(offset, next, output);
  }

  /** Write the part of a piece that was not shown. Offsets count bytes. */
  show(offset, next, output) {
    if (next <= this.next) return;
    const rest = offset < this.next ? withoutBytes(output, this.next - offset) : output;
    if (offset > this.next && !this.within) this.screen.write(`\r\n[${offset - this.next} bytes of the output are no longer kept]\r\n`);
    const shown = this.within ? rest.slice(rest.indexOf("\n") + 1) : rest;
    this.within = false;
    this.next = next;
    this.screen.write(shown);
    this.speak(shown);
    this.draw();
  }

  /** Read the output from where it is shown up to its present end, and how the shell ended. */
  async catchUp() {
    if (!this.execId || this.status === "ended") return;
    if (this.reading) return void (this.again = true);
    this.reading = true;
    try {
      do {
        this.again = false;
        for (;;) {
          const page = await this.call("process_output", { exec_id: this.execId, after: this.next }, (error) => this.unknown(error));
          if (!page) return;
          this.show(page.offset, page.next, page.output);
          if (this.newest - this.next > BEHIND) this.skipTo(this.newest - HISTORY);
          if (page.output) continue;
          if (page.status === "exited") this.ended(page);
          break;
        }
        this.fresh = true;
      } while (this.again && this.status === "running");
    } finally {
      this.reading = false;
      for (const { offset, next, output } of this.early.splice(0)) this.piece({ offset, next, output });
    }
  }

  /** Begin with the end of a long output. */
  async skipOld() {
    this.reading = true; // what the stream brings meanwhile waits
    const page = await this.call("process_output", { exec_id: this.execId, after: FAR }, () => {});
    if (page && page.next > HISTORY && page.next < FAR) this.skipTo(page.next - HISTORY);
    this.reading = false;
  }

  skipTo(offset) {
    this.screen.write(`\r\n[${offset - this.next} bytes of the output are left out]\r\n`);
    this.next = offset;
    this.within = true; // the next piece may begin within a line or a sequence
  }

  unknown(error) {
    this.status = "ended";
    this.end.hidden = true;
    this.say(`This shell is not known any more: ${error.message}`, "bad", this.another());
  }

  ended({ exit_code, signal, reason }) {
    const how = ENDED[reason] ?? (signal ? `The shell was ended by the signal ${signal.replace(/^SIG/, "")}.` : `The shell ended with status ${exit_code}.`);
    this.status = "ended";
    this.troubled = false;
    this.end.hidden = true;
    this.outbox = [];
    this.box.classList.add("ended");
    this.say(how, exit_code === 0 || reason === "stopped" ? "" : "bad", this.another());
  }

  another() {
    return h("button.small.primary", { onclick: () => (history.replaceState(null, "", `#${this.chatId}`), location.reload()) }, "New shell");
  }

  async hangUp() {
    await this.call("process_signal", { exec_id: this.execId, signal: "HUP" }, (error) => this.say(error.message, "bad"));
  }

  /** Answer a program's question. The questions in older output were answered when it was written. */
  reply(text) {
    if (this.fresh && document.visibilityState === "visible") this.type(text);
  }

  // -- input -------------------------------------------------------------------------------------

  onKey(event) {
    if (event.isComposing || event.metaKey) return;
    const control = event.ctrlKey && !event.altKey;
    const letter = event.key.toLowerCase();
    if (control && letter === "m") {
      event.preventDefault();
      this.back.focus();
      return;
    }
    if (control && letter === "v") return; // the browser pastes
    if (control && letter === "c" && (event.shiftKey || !getSelection().isCollapsed)) return; // the browser copies
    if (event.shiftKey && (event.key === "PageUp" || event.key === "PageDown")) {
      event.preventDefault();
      this.output.scrollBy(0, (event.key === "PageUp" ? -0.9 : 0.9) * this.output.clientHeight);
      return;
    }
    const text = encoded(event, this.screen.applicationKeys);
    if (text === null) return;
    event.preventDefault();
    this.type(text);
  }

  /** A key for keyboards of phones. */
  button(text, name, event) {
    const press = () => {
      this.type(encoded(event, this.screen.applicationKeys));
      this.keys.focus();
    };
    return h("button", { "aria-label": name, onclick: press }, text);
  }

  holdControl(on) {
    this.holdsControl = on;
    this.control.setAttribute("aria-pressed", String(on));
    this.keys.focus();
  }

  takeTyped() {
    const text = this.keys.value;
    this.keys.value = "";
    if (!text) return;
    const control = this.holdsControl ? encoded({ key: text, ctrlKey: true }, false) : null;
    if (this.holdsControl) this.holdControl(false);
    this.type(control ?? text.replaceAll("\n", "\r"));
  }

  paste(text) {
    if (text.length > LARGEST_PASTE) return this.say("This is too much to paste: at most 1 MiB. Copy it as a file: workspaced cp.", "bad");
    this.type(pasted(text, this.screen.bracketedPaste));
  }

  type(text) {
    if (!text || this.status !== "running") return;
    this.atEnd = true;
    this.outbox.push(...pieces(new TextEncoder().encode(text)));
    this.sendInput();
  }

  sendSize() {
    if (this.status !== "running") return;
    this.size = { cols: this.screen.cols, rows: this.screen.rows };
    this.sendInput();
  }

  /** Send keys and sizes, one request after another, so that they keep their order. */
  async sendInput() {
    if (this.sending) return;
    this.sending = true;
    try {
      while ((this.outbox.length || this.size) && this.status === "running") {
        const size = this.size;
        const bytes = this.takeBytes();
        this.size = null;
        const data = bytes.length ? { data: btoa(String.fromCharCode(...bytes)), encoding: "base64" } : {};
        const result = await this.call("process_input", { exec_id: this.execId, ...data, ...size }, () => this.catchUp());
        if (!result) {
          this.outbox = []; // the shell has ended, or reads no more
          return;
        }
        const rest = bytes.subarray(result.written ?? bytes.length);
        if (rest.length) this.outbox.unshift(rest);
        if (rest.length === bytes.length && rest.length) await pause(200); // back-off
      }
    } finally {
      this.sending = false;
    }
  }

  /** Take what was typed since the last request, up to the size of one. */
  takeBytes() {
    const taken = [];
    let size = 0;
    while (this.outbox.length && size + this.outbox[0].length <= PIECE) {
      const piece = this.outbox.shift();
      taken.push(...piece);
      size += piece.length;
    }
    return Uint8Array.from(taken);
  }

  // -- requests ----------------------------------------------------------------------------------

  /** Call a tool, again with the same id while nobody answers: it is done once. An error is handed on, and nothing returned. */
  async call(tool, args, refused, callId = identifier()) {
    const isOver = () => args.exec_id && this.status === "ended"; // then only that matters to people
    for (let failures = 0; !this.stopped; failures++) {
      if (isOver()) return null;
      const seen = this.changes;
      try {
        const { body } = await send("POST", `/v1/chats/${this.chatId}/tools/${tool}`, { call_id: callId, args });
        if (!body.is_error) {
          if (this.troubled) this.say("");
          this.troubled = false;
          return body.result;
        }
        if (isOver()) return null;
        if (!("next_step" in body.result)) return void refused(new Refused(plain(body.result.error)));
        this.troubled = true;
        this.say(UNAVAILABLE[body.result.next_step] ?? plain(body.result.error), "bad", this.toChat());
        if (this.changes === seen) await new Promise((go) => this.waiting.push(go));
      } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        if (problem.status === 401 || isOver()) return null;
        const silent = problem.status === 502 || problem.status === 504;
        const passes = silent || problem.status === 0 || problem.status === 503 || (problem.status === 429 && tool !== "execute");
        if (!passes) return void refused(new Refused(problem.message));
        this.troubled = true;
        this.say(silent ? "The workspace's agent does not answer. The shell goes on, and this page tries again; what you type waits." : "The gateway can't be reached. The shell goes on, and this page tries again; what you type waits.", "bad");
        await pause(Math.min(5000, 150 * 2 ** failures), this.reachable.signal); // back-off
      }
    }
    return null;
  }
}

function identifier() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function pieces(bytes) {
  return Array.from({ length: Math.ceil(bytes.length / PIECE) }, (_, at) => bytes.subarray(at * PIECE, (at + 1) * PIECE));
}

new Terminal().start();
