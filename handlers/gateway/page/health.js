// What is wrong with workspaced itself: the banner above every view, and what operators know of workers and pools.
import { get, Problem } from "./api.js";
import { clock, fill, h, localTime, marked, plain, setText } from "./dom.js";

const AGAIN = 3000; // milliseconds between two readings
const SETTLING = [400, 2000, 6000]; // milliseconds after which a process that came may serve, or one that went is gone
const EVERYBODYS = ["NATS", "PostgreSQL", "workers"]; // places whose problems stop everything

export class Health {
  constructor(app) {
    this.app = app;
    this.element = document.getElementById("banner");
    this.status = null; // the reply of the rpc `status`; only operators may read it
    this.lost = null; // since when the stream is not live, and why
    this.unread = null; // why the last reading of a view failed
    this.last = -AGAIN;
    this.settling = [];
  }

  // -- what happens ------------------------------------------------------------------------------

  /** The stream of this tab has begun, or could not. */
  connection(live, problem) {
    if (live) this.lost = null;
    else if (problem) {
      this.lost = { since: this.lost?.since ?? clock.now(), problem };
      if (problem.status) this.soon(); // the gateway answers: it can say more
    }
    this.draw();
  }

  /** A view has read what it shows, or could not. */
  reading(problem) {
    this.unread = problem && [0, 503].includes(problem.status) ? problem : null;
    this.draw();
  }

  /** Somebody has connected to NATS, or is gone: what runs may be different now, or in a moment. */
  presence() {
    this.settling.forEach(clearTimeout);
    this.settling = SETTLING.map((delay) => setTimeout(() => this.read(), delay));
  }

  // -- reading -----------------------------------------------------------------------------------

  /** Read the status, but not more often than every few seconds. */
  soon() {
    if (this.timer) return;
    this.timer = setTimeout(() => this.read(), Math.max(0, this.last + AGAIN - performance.now()));
  }

  /** Read the status; return it, or null. */
  async read() {
    clearTimeout(this.timer);
    this.timer = null;
    if (!this.app.isOperator) return null;
    this.last = performance.now();
    try {
      this.status = await get("/v1/status");
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      this.reading(problem);
      return null;
    }
    this.reading(null);
    this.app.view?.judged?.();
    return this.status;
  }

  // -- drawing -----------------------------------------------------------------------------------

  draw() {
    const problems = this.status?.problems ?? [];
    const shown = [];
    if (this.lost) shown.push(connectionLost(this.lost));
    else if (this.unread) shown.push(unreadable(this.unread));
    if (!this.lost && !this.app.view?.showsProblems) shown.push(...problems.filter((one) => EVERYBODYS.includes(one.where)));
    this.badge(problems.length);
    const key = JSON.stringify(shown);
    if (this.key === key) return;
    this.key = key;
    this.element.hidden = shown.length === 0;
    fill(
      this.element,
      shown.map((one) => h("div.trouble", h("strong", sentence(plain(one.what))), " ", h("span", h("span.todo", "What to do: "), marked(one.do), "."))),
    );
  }

  badge(count) {
    const { operations } = this.app;
    if (!operations) return;
    const text = count ? String(count) : "";
    if (!operations.badge) operations.append((operations.badge = h("span.badge")));
    operations.badge.hidden = !count;
    setText(operations.badge, text);
    operations.badge.title = `${count} problem${count === 1 ? "" : "s"}`;
  }
}

function connectionLost({ since, problem }) {
  if (problem.status === 0) {
    return {
      what: `The gateway can't be reached; what you see is as of ${localTime(since)}`,
      do: "wait, the page tries again by itself; if it lasts, start `workspaced up`, or `workspaced gateway`",
    };
  }
  return {
    what: `The gateway can't follow chats: ${problem.message}; what you see is as of ${localTime(since)}`,
    do: "wait, the page tries again by itself; `workspaced status` says in a terminal what is away",
  };
}

function unreadable(problem) {
  return {
    what: `The page can't be brought up to date: ${problem.message}`,
    do: "wait, the page tries again by itself; `workspaced status` says in a terminal what is away",
  };
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}
