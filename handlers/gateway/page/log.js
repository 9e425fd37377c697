// The log of a build and of the commands that run: stages that fold, colours, follow, pause and search.
import { get, Problem, send, SHELL } from "./api.js";
import { lastFrame, pieces, textOf } from "./ansi.js";
import { fill, h, onFrame, plain, setText, withoutBytes } from "./dom.js";

const MOST = 4000; // lines of a stage that are in the document

export class LogView {
  constructor(chatId, mayRun) {
    this.chatId = chatId;
    this.mayRun = mayRun; // and so may ask for the output of commands
    this.draw = onFrame(() => this.render());
    this.following = true;
    this.paused = false;
    this.clear();
  }

  clear() {
    this.stages = [];
    this.seen = new Set();
    this.early = [];
    this.commands = new Map();
    this.after = 0;
    this.buildId = null;
    this.body?.replaceChildren();
    this.waiting = 0;
  }

  mount() {
    this.follow = h("button.small", { "aria-pressed": "true", onclick: () => this.setFollowing(!this.following) }, "Follow");
    this.pause = h("button.small", { "aria-pressed": "false", onclick: () => this.setPaused(!this.paused) }, "Pause");
    this.hits = h("span.muted.hits", { role: "status" });
    this.search = h("input", {
      type: "search",
      placeholder: "Search the log",
      "aria-label": "Search the log",
      oninput: () => this.find(),
      onkeydown: (event) => {
        if (event.key === "Enter") this.nextHit(event.shiftKey ? -1 : 1);
      },
    });
    this.body = h("div.logbody", { tabIndex: 0, role: "log", "aria-label": "Log", "aria-live": "off" });
    this.body.addEventListener("scroll", () => {
      const end = this.body.scrollHeight - this.body.scrollTop - this.body.clientHeight < 24;
      if (end !== this.following && !this.scrolling) this.setFollowing(end);
    });
    // Lines have their height only when they come into view, so a log that is followed may grow then.
    this.resized = new ResizeObserver(() => this.following && this.toEnd());
    this.resized.observe(this.body);
    return h("section.log", h("div.logbar", h("h2", "Log"), h("span.grow"), this.hits, this.search, this.pause, this.follow), this.body);
  }

  unmount() {
    this.gone = true;
    this.resized.disconnect();
    clearTimeout(this.later);
  }

  setFollowing(following) {
    this.following = following;
    this.follow.setAttribute("aria-pressed", String(following));
    if (following) this.toEnd();
  }

  setPaused(paused) {
    this.paused = paused;
    this.pause.setAttribute("aria-pressed", String(paused));
    setText(this.pause, paused ? "Resume" : "Pause");
    if (!paused) this.draw();
  }

  toEnd() {
    this.scrolling = true;
    this.body.scrollTop = this.body.scrollHeight;
    requestAnimationFrame(() => {
      if (this.following) this.body.scrollTop = this.body.scrollHeight; // lines that were estimated have their height now
      this.scrolling = false;
    });
  }

  /** Show a build's log: what is stored, then what comes. */
  async show(buildId) {
    if (this.buildId === buildId) return;
    this.clear();
    this.buildId = buildId;
    await this.readOn();
  }

  /** Read what is stored and was not read. Lines that came by the stream meanwhile are known by their numbers. */
  async readOn() {
    const buildId = this.buildId;
    if (!buildId || this.reading) return;
    clearTimeout(this.later);
    this.reading = true;
    try {
      for (;;) {
        const page = await get(`/v1/chats/${this.chatId}/builds/${buildId}/log${this.after ? `?after=${this.after}` : ""}`);
        if (this.buildId !== buildId) return;
        for (const line of page.lines) this.add(line);
        if (page.next === undefined) break;
        this.after = page.next;
      }
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if ([0, 429, 503].includes(problem.status) && !this.gone) this.later = setTimeout(() => this.readOn(), 2000); // back-off
    } finally {
      this.reading = false;
      for (const line of this.early.splice(0)) this.add(line);
      if (this.buildId && this.buildId !== buildId) this.readOn();
      this.draw();
    }
  }

  /** Add a message that comes by the stream; while older ones are read, it waits, so that stages keep their order. */
  live(line) {
    if (this.reading) this.early.push(line);
    else this.add(line);
  }

  /** Add a message of the log, unless it was added. */
  add(line) {
    if (line.build_id !== this.buildId) return;
    const key = `${line.origin}:${line.sequence}`;
    if (this.seen.has(key)) return;
    this.seen.add(key);
    const stage = this.stage(`${line.origin} ${line.stage ?? ""}`, line.stage || line.origin, line.origin, line.sequence);
    stage.insert(line);
    this.draw();
  }

  /** Add what a command did. One that began before this page followed the chat is asked for what it wrote before. */
  command(event) {
    const { data, type } = event;
    let known = this.commands.get(data.exec_id);
    if (!known) {
      known = { id: data.exec_id, stage: this.stage(`exec ${data.exec_id}`, titleOf(data.command), "command"), next: 0, number: 0, early: null };
      this.commands.set(data.exec_id, known);
      if (data.command === undefined && this.mayRun) this.readCommand(known, data.offset ?? data.size ?? 0);
    }
    if (known.early) known.early.push(event);
    else if (type.includes("exec_output")) this.output(known, data);
    else if (type.includes("exec_exited")) known.stage.note(data.exit_code === 0 ? "done" : `ended: ${data.reason ?? data.signal ?? `status ${data.exit_code}`}`);
    this.draw();
  }

  /** Add a piece of a command's output, or what of it is new. */
  output(known, { offset, next, output }) {
    if (next <= known.next) return;
    const late = offset > known.next ? `… ${(offset - known.next).toLocaleString()} bytes are not shown …\n` : "";
    const text = offset < known.next ? withoutBytes(output, known.next - offset) : output;
    known.next = next;
    known.stage.insert({ output: late + text, sequence: ++known.number, raw: true });
  }

  /** Read the command and what it wrote so far, at most the last MiB; what comes by the stream meanwhile waits. */
  async readCommand(known, written) {
    known.early = [];
    const ask = async (tool, args) => (await send("POST", `/v1/chats/${this.chatId}/tools/${tool}`, { args })).body;
    try {
      const listed = await ask("process_list", {});
      const found = listed.result.processes?.find((one) => one.exec_id === known.id);
      if (found) known.stage.rename(titleOf(found.command));
      for (let page = null; !page || page.output; ) {
        const answer = await ask("process_output", { exec_id: known.id, after: page ? known.next : Math.max(0, written - 1048576) });
        if (answer.is_error) break;
        page = answer.result;
        if (page.output) this.output(known, page);
      }
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
    } finally {
      const { early } = known;
      known.early = null;
      for (const event of early) this.command(event);
      this.draw();
    }
  }

  /** Return a stage; a new one stands where its first line belongs among those of its origin. */
  stage(key, title, origin, first = Infinity) {
    let found = this.stages.find((stage) => stage.key === key);
    if (!found) {
      found = new Stage(key, plain(title), origin, first);
      const later = this.stages.findIndex((stage) => stage.origin === origin && stage.first > first);
      this.stages.splice(later < 0 ? this.stages.length : later, 0, found);
      // What is complete folds when the next stage begins, unless somebody opened it or it has failed.
      const all = this.stages.filter((stage) => stage.origin === origin);
      for (const stage of all.slice(0, -1)) stage.settle();
    }
    found.first = Math.min(found.first, first);
    return found;
  }

  render() {
    if (!this.body) return;
    if (this.paused) {
      const waiting = this.stages.reduce((sum, stage) => sum + stage.undrawn, 0);
      setText(this.pause, waiting ? `Resume (${waiting} new)` : "Resume");
      return;
    }
    let next = null;
    for (const stage of this.stages.toReversed()) {
      if (!stage.element) this.resized.observe(this.body.insertBefore(stage.make(), next));
      stage.render();
      next = stage.element;
    }
    const empty = this.stages.length === 0;
    if (empty && !this.body.querySelector(".muted")) fill(this.body, h("p.muted.pad", "Nothing has been logged yet."));
    if (!empty) this.body.querySelector(":scope > .muted")?.remove();
    if (this.search.value) this.find(false);
    if (this.following) this.toEnd();
  }

  find(jump = true) {
    const words = this.search.value.toLowerCase();
    const hits = [];
    for (const line of this.body.querySelectorAll(".line")) {
      const hit = words !== "" && line.textContent.toLowerCase().includes(words);
      line.classList.toggle("hit", hit);
      if (hit) hits.push(line);
    }
    this.found = hits;
    setText(this.hits, words ? `${hits.length} found` : "");
    if (jump && words) {
      this.setFollowing(false);
      this.at = -1;
      this.nextHit(1);
    }
  }

  nextHit(step) {
    if (!this.found?.length) return;
    this.found[this.at]?.classList.remove("here");
    this.at = (((this.at ?? -1) + step) % this.found.length + this.found.length) % this.found.length;
    const line = this.found[this.at];
    line.classList.add("here");
    line.closest("details").open = true;
    line.scrollIntoView({ block: "center" });
    setText(this.hits, `${this.at + 1} of ${this.found.length}`);
  }

  /** The last lines that were logged, as text. */
  tail(count) {
    const lines = [];
    for (const stage of [...this.stages].reverse()) {
      if (stage.origin === "command") continue;
      lines.unshift(...stage.texts().slice(-(count - lines.length)));
      if (lines.length >= count) break;
    }
    return lines;
  }
}

class Stage {
  constructor(key, title, origin, first) {
    Object.assign(this, { key, title, origin, first, messages: [], drawn: 0, undrawn: 0, open: true, style: {}, rest: "" });
  }

  make() {
    this.heading = h("summary", h("span.stagename", this.title), h("span.muted.stagecount"));
    this.lines = h("div.lines");
    this.element = h("details.stage", this.heading, this.lines);
    this.element.open = this.open;
    this.element.addEventListener("toggle", () => (this.open = this.element.open));
    this.heading.addEventListener("click", () => (this.chosen = true));
    return this.element;
  }

  /** Keep messages in the order of their numbers; late ones of an earlier number draw the stage again. */
  insert(line) {
    const list = this.messages;
    let at = list.length;
    while (at > 0 && list[at - 1].sequence > line.sequence) at--;
    list.splice(at, 0, line);
    if (line.level === "error") this.failed = true;
    if (at < this.drawn) this.again = true;
    this.undrawn += 1;
  }

  rename(title) {
    this.title = plain(title);
    if (this.heading) setText(this.heading.firstElementChild, this.title);
  }

  note(text) {
    this.ended = text;
  }

  settle() {
    if (this.chosen || this.failed) return;
    this.open = false;
    if (this.element) this.element.open = false;
  }

  texts() {
    return this.messages.flatMap((message) => linesOf(message.output)).map((line) => textOf(lastFrame(line)));
  }

  render() {
    if (this.again) {
      this.lines.replaceChildren();
      this.drawn = 0;
      this.style = {};
      this.again = false;
      this.rest = "";
      this.open_ = null;
    }
    const added = [];
    for (; this.drawn < this.messages.length; this.drawn++) {
      const message = this.messages[this.drawn];
      if (message.raw) this.appendRaw(message.output, added);
      else for (const line of linesOf(message.output)) added.push(this.line(line, message.level));
    }
    this.undrawn = 0;
    const kept = added.slice(-MOST);
    this.lines.append(...kept);
    while (this.lines.childElementCount > MOST) this.lines.firstElementChild.remove();
    const count = this.lines.childElementCount;
    setText(this.heading.lastElementChild, `${this.ended ? `${this.ended} · ` : ""}${count >= MOST ? `last ${count}` : count} line${count === 1 ? "" : "s"}`);
  }

  /** Pieces of a command's output need not end with a line: the last line is drawn again with what follows. */
  appendRaw(text, added) {
    const lines = (this.rest + text).split("\n");
    if (this.open_) {
      const at = added.indexOf(this.open_);
      if (at >= 0) added.splice(at, 1);
      else this.open_.remove();
      this.open_ = null;
    }
    this.rest = lines.pop();
    for (const line of lines) added.push(this.line(line));
    if (this.rest) added.push((this.open_ = this.line(this.rest, "info", { ...this.style })));
  }

  line(text, level, style = this.style) {
    const element = h("div.line");
    if (level === "error" || level === "warn" || level === "warning") element.classList.add(level === "error" ? "error" : "warn");
    for (const [piece, classes] of pieces(lastFrame(text), style)) {
      if (!classes) element.append(piece);
      else {
        const span = document.createElement("span");
        span.className = classes;
        span.textContent = piece;
        element.append(span);
      }
    }
    if (!element.firstChild) element.append("\u00a0");
    return element;
  }
}

function titleOf(command) {
  if (command === SHELL) return "terminal";
  return command === undefined ? "a command that began earlier" : `$ ${command}`;
}

function linesOf(output) {
  const lines = String(output ?? "").replaceAll("\r\n", "\n").split("\n");
  if (lines.length > 1 && lines[lines.length - 1] === "") lines.pop();
  return lines;
}
