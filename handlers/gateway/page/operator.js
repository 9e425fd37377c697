// What operators look at: what is wrong and what to do, and what serves, waits and was thrown away.
import { get, Problem } from "./api.js";
import { age, clock, duration, fill, h, marked, plain, timeOf } from "./dom.js";
import { label, tone } from "./states.js";

export class OperatorView {
  constructor(app) {
    this.app = app;
    this.showsProblems = true;
  }

  mount() {
    this.at = h("span.muted");
    this.body = h("div", h("p.muted", "Reading…"));
    this.focused = () => this.app.health.soon();
    window.addEventListener("focus", this.focused);
    this.app.health.read();
    return h(
      "section.operator",
      h("div.toolbar", h("h1", "Operations"), this.at, h("span.grow"), h("button", { onclick: () => this.app.health.read() }, "Refresh")),
      this.body,
    );
  }

  unmount() {
    this.gone = true;
    window.removeEventListener("focus", this.focused);
  }

  /** A chat has changed, so these figures may have: read them again, but not for each change. */
  changed() {
    this.app.health.soon();
  }

  /** The status was read: read the rest, and show both. */
  async judged() {
    const found = await Promise.allSettled(["/v1/calls", "/v1/dead", "/v1/builds/times"].map((path) => get(path)));
    if (this.gone) return;
    const unexpected = found.find((one) => one.status === "rejected" && !(one.reason instanceof Problem));
    if (unexpected) throw unexpected.reason;
    const [calls, dead, times] = found.map((one) => (one.status === "fulfilled" ? one.value : { problem: one.reason.message }));
    const { status } = this.app.health;
    fill(this.at, "as of ", timeOf(status.at));
    fill(this.body, this.problems(status), this.figures(status), this.pools(status), this.calls(calls), this.times(times), this.dead(dead), this.servers(status), this.streams(status));
  }

  problems({ problems }) {
    if (!problems.length) return h("p.allwell", h("span.pill.good", "All is well"));
    return h(
      "section",
      h("h2", `${problems.length} problem${problems.length === 1 ? "" : "s"}`),
      h(
        "ul.problems",
        problems.map((one) => h("li.failure", h("strong", plain(one.where)), h("p", plain(one.what)), h("p", h("strong", "What to do: "), marked(one.do)))),
      ),
    );
  }

  figures(status) {
    const states = new Map();
    for (const chat of this.app.chats.values()) states.set(chat.state, (states.get(chat.state) ?? 0) + 1);
    const { waiting_calls: calls, dead_letters: dead, pools } = status;
    const total = (key) => (pools.some((pool) => pool[key] === null) ? "?" : pools.reduce((sum, pool) => sum + pool[key], 0));
    return h(
      "section.cards",
      card("Jobs waiting", total("waiting")),
      card("Builds running", total("running")),
      card("Calls waiting", calls?.count ?? "?", calls?.oldest_at ? `the oldest for ${ago(calls.oldest_at)}` : ""),
      card("Dead letters", dead?.count ?? "?", dead?.newest_at ? `the newest ${ago(dead.newest_at)} ago` : ""),
      card("Workers", status.workers.length),
      card("Gateways", status.gateways.length),
    );
  }

  pools({ pools }) {
    return part(
      "Pools",
      ["Pool", "Provisioner", "Idle", "Waiting", "Running", "Oldest job"],
      pools.map((pool) => [
        plain(pool.pool),
        pool.served === null ? "unknown" : h(`span.pill.${pool.served ? "good" : "bad"}`, pool.served ? "connected" : "none"),
        pool.idle ?? "?",
        pool.waiting ?? "?",
        pool.running ?? "?",
        pool.oldest_at ? `${ago(pool.oldest_at)} old` : "–",
      ]),
      "No template names a pool yet.",
    );
  }

  calls(page) {
    if (page.problem) return unread("Waiting calls", page);
    return part(
      "Waiting calls",
      ["Chat", "Tool", "State", "Waits for", "Since"],
      page.calls.map((call) => [
        h("a", { href: `#/chat/${call.chat_id}` }, this.nameOf(call.chat_id)),
        plain(call.tool),
        h(`span.pill.${tone(call.state)}`, label(call.state)),
        plain(call.waits_for),
        ago(call.asked_at),
      ]),
      "No call waits.",
      page.next ? marked("These are the first; `workspaced calls list` shows all.") : "",
    );
  }

  nameOf(chatId) {
    const workspace = this.app.chats.get(chatId)?.workspace;
    return workspace ? plain(workspace.name) : chatId.slice(0, 8);
  }

  times(found) {
    if (found.problem) return unread("Build times", found);
    return part(
      "Build times",
      ["Template", "Kind", "Builds", "Failed", "Queued", "Median", "90 %", "Longest"],
      found.templates.map((row) => [plain(row.template ?? "elsewhere"), row.transition, row.count, row.failed || "–", took(row.queued), took(row.median), took(row.p90), took(row.longest)]),
      "No build has ended lately.",
      found.templates.length ? `since ${new Date(found.since).toLocaleString()}` : "",
    );
  }

  dead(page) {
    if (page.problem) return unread("Dead letters", page);
    return part(
      "Dead letters",
      ["No.", "When", "From", "Chat", "Why"],
      page.letters.map((letter) => [
        letter.sequence,
        timeOf(letter.at),
        plain(letter.sender ?? letter.subject),
        letter.chat_id ? h("a", { href: `#/chat/${letter.chat_id}` }, this.nameOf(letter.chat_id)) : "–",
        [plain(letter.reason), h("div.muted.clip", plain(letter.detail))],
      ]),
      "Nothing was thrown away.",
    );
  }

  servers({ servers, workers, gateways }) {
    const rows = [
      ...servers.map((one) => [one.kind, plain(one.name ?? "–"), plain(one.version ?? "–"), one.started_at, one.reachable]),
      ...workers.map((one) => ["worker", plain(one.name), plain(one.version), one.started_at, true]),
      ...gateways.map((one) => ["gateway", plain(one.id), plain(one.version), one.started_at, true]),
    ];
    return part(
      "Servers",
      ["Kind", "Name", "Version", "Up for", "State"],
      rows.map(([kind, name, version, since, up]) => [kind, name, version, since ? ago(since) : "–", h(`span.pill.${up ? "good" : "bad"}`, up ? "up" : "unreachable")]),
    );
  }

  streams({ streams }) {
    return part(
      "Streams",
      ["Stream", "Messages", "Size", "Not yet handled"],
      streams.map((one) => [
        plain(one.name),
        one.messages.toLocaleString(),
        one.max_bytes ? `${mib(one.bytes)} of ${mib(one.max_bytes)}` : mib(one.bytes),
        one.consumers.length ? one.consumers.map((consumer) => consumer.undelivered + consumer.unacked).reduce((a, b) => a + b) : "–",
      ]),
    );
  }
}

function card(title, value, more = "") {
  return h("div.card", h("div.muted", title), h("div.big", String(value)), more ? h("div.muted", more) : null);
}

function part(title, head, rows, none = "None.", foot = "") {
  const content = rows.length
    ? h("table", h("thead", h("tr", head.map((name) => h("th", { scope: "col" }, name)))), h("tbody", rows.map((cells) => h("tr", cells.map((cell) => h("td", cell))))))
    : h("p.muted", none);
  return h("section", h("h2", title), h("div.scroll", { tabIndex: 0, role: "region", "aria-label": title }, content), foot ? h("p.muted", foot) : null);
}

/** A part that could not be read. */
function unread(title, { problem }) {
  return h("section", h("h2", title), h("div.scroll", h("p.muted", `Not known: ${plain(problem)}.`)));
}

function ago(moment) {
  return age(clock.now() - Date.parse(moment));
}

function took(seconds) {
  if (seconds === null) return "–";
  return seconds < 10 ? `${seconds.toFixed(1)} s` : duration(seconds);
}

function mib(bytes) {
  return bytes < 1048576 ? `${Math.ceil(bytes / 1024).toLocaleString()} KiB` : `${Math.round(bytes / 1048576).toLocaleString()} MiB`;
}
