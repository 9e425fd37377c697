// What the event log says of a chat's past: how long each phase took, and the builds.
import { clock, duration, h, localTime, plain, timeOf } from "./dom.js";
import { label, left, settled } from "./states.js";

const PHASES = {
  start: [["building", "Build"], ["agent_connecting", "Agent connects"], ["scripts_running", "Startup scripts"]],
  stop: [["stopping", "Stop"]],
  delete: [["stopping", "Delete"]],
};

/** Return the stays in states, `{state, from, to}`, the present one last with `to` null. */
export function staysOf(entries) {
  const stays = [];
  for (const entry of entries) {
    const builds = /\.(build_requested|build_started)\./.test(entry.event.type);
    if (entry.outcome !== "moved") continue;
    const last = stays.at(-1);
    if (last && last.state === entry.state_after && !(builds && last.build !== entry.event.data.build_id)) continue;
    if (last) last.to = Date.parse(entry.at);
    stays.push({ state: entry.state_after, from: Date.parse(entry.at), to: null, build: builds ? entry.event.data.build_id : last?.build });
  }
  return stays;
}

/** Return the builds that the event log names, the newest first. */
export function buildsOf(entries) {
  const builds = new Map();
  for (const { event, at, outcome } of entries) {
    const { build_id: id, build_number: number, transition } = event.data;
    const kind = /^workspaced\.(build_\w+|workspace_deleted)\./.exec(event.type)?.[1];
    if (!id || !kind || outcome === "repeat" || outcome === "foreign") continue;
    if (!builds.has(id)) builds.set(id, { id, number: null, transition: null, result: null, requested: at });
    const build = builds.get(id);
    if (number) build.number = number;
    if (transition) build.transition = transition;
    if (kind === "build_requested") build.requested = at;
    else if (kind === "build_started") build.begun ??= at;
    else if (["build_succeeded", "build_failed", "build_canceled"].includes(kind) && !build.result) {
      build.result = kind.slice(6);
      build.ended = at;
      build.error = event.data.error;
    }
  }
  return [...builds.values()].reverse();
}

/** The stays and builds of a chat as its states tell them: for sessions that may not read its event log. */
export class Observed {
  constructor() {
    this.stays = [];
    this.known = new Map();
  }

  /** Note a state of the chat; `chat.since`: when it was entered. */
  add(chat) {
    const { build, state, failure, since } = chat;
    const last = this.stays.at(-1);
    const moved = last && (last.state !== state || last.build !== build?.id);
    if (moved) last.to = since;
    if (!last || moved) this.stays.push({ state, from: since, to: null, build: build?.id });
    const deleted = moved && state === "none" ? this.known.get(last.build) : null;
    if (deleted) this.end(deleted, "succeeded", since);
    if (!build) return;
    const known = this.known.get(build.id) ?? { id: build.id, number: build.number, transition: build.transition, requested: build.started_at, result: null };
    this.known.set(build.id, known);
    known.begun = build.begun_at ?? undefined;
    const result = resultOf(state, failure);
    if (result) this.end(known, result, moved && last.build === build.id ? since : null);
  }

  end(build, result, at) {
    if (build.result !== result) Object.assign(build, { result, ended: at === null ? undefined : new Date(at).toISOString() });
  }

  /** The builds, the newest first. */
  builds() {
    return [...this.known.values()].reverse();
  }
}

/** Return how the followed build ended, as its chat's state tells it; null while it goes on. */
function resultOf(state, failure) {
  if (state === "building" || state === "stopping" || failure?.reason === "build_timeout") return null;
  return { build_failed: "failed", build_canceled: "canceled" }[failure?.reason] ?? "succeeded";
}

/** Draw a bar for each phase of the present build: its time, and of the running one what is left of its limit. */
export function phaseBars(chat, stays) {
  const transition = chat.build?.transition ?? "start";
  const phases = PHASES[transition] ?? PHASES.start;
  const now = clock.now();
  const places = phases.map(([state]) => state);
  const here = places.indexOf(chat.state);
  const run = [];
  for (const stay of [...stays].reverse()) {
    run.unshift(stay);
    if (stay.state === places[0]) break;
  }
  return h(
    "ol.phases",
    { "aria-label": "Phases of the build" },
    phases.map(([state, name], at) => {
      const stay = run.findLast((one) => one.state === state);
      const running = chat.state === state;
      const from = stay?.from ?? (running ? chat.since : null);
      const seconds = from ? ((stay?.to ?? now) - from) / 1000 : null;
      const failed = chat.state === "failed" && failedAt(chat) === state;
      const done = !running && !failed && (stay ? stay.to !== null : here > at || chat.state === "ready" || chat.state === "stopped");
      const kind = running ? "running" : failed ? "failed" : done ? "done" : "pending";
      const total = running && chat.deadline && from ? (Date.parse(chat.deadline) - from) / 1000 : null;
      const fill = h("div.fill");
      if (running) fill.style.width = `${total ? Math.min(100, Math.max(3, (100 * seconds) / total)) : 40}%`;
      const text = running
        ? [seconds === null ? "" : duration(seconds), chat.deadline ? left(chat.deadline, now) : ""].filter(Boolean).join(" · ")
        : failed
          ? `failed${seconds === null ? "" : ` after ${precise(seconds)}`}`
          : done
            ? seconds === null ? "done" : precise(seconds)
            : settled(chat.state) ? "–" : "to come";
      return h(`li.phase.${kind}`, h("div.track", fill), h("div.phasename", name), h("div.phasetime", text));
    }),
  );
}

function precise(seconds) {
  return seconds < 10 ? `${seconds.toFixed(seconds < 1 ? 2 : 1)} s` : duration(seconds);
}

function failedAt(chat) {
  const reason = chat.failure?.reason ?? "";
  if (reason === "agent_not_ready" || reason === "selection_error") return "agent_connecting";
  if (reason.startsWith("startup_scripts")) return "scripts_running";
  return chat.build?.transition === "start" ? "building" : "stopping";
}

/** Draw the table of builds; a click shows a build's log. */
export function buildTable(builds, shown, choose) {
  if (!builds.length) return h("p.muted", "No build yet.");
  return h(
    "table",
    h("thead", h("tr", ["No.", "Kind", "Result", "Queued", "Took", "Requested", "Log"].map((title) => h("th", { scope: "col" }, title)))),
    h(
      "tbody",
      builds.map((build) =>
        h(
          "tr",
          { "aria-current": build.id === shown ? "true" : null },
          h("td", String(build.number ?? "–")),
          h("td", build.transition ?? "–"),
          h("td", h(`span.pill.${{ succeeded: "good", failed: "bad", canceled: "idle" }[build.result] ?? "busy"}`, build.result ?? "open")),
          h("td", build.begun ? precise((Date.parse(build.begun) - Date.parse(build.requested)) / 1000) : "–"),
          h("td", build.ended && build.begun ? precise((Date.parse(build.ended) - Date.parse(build.begun)) / 1000) : "–"),
          h("td", timeOf(build.requested)),
          h("td", h("button.small", { "aria-label": `Show the log of build ${build.number}`, disabled: build.id === shown, onclick: () => choose(build.id) }, build.id === shown ? "Shown" : "Show")),
        ),
      ),
    ),
  );
}

/** Draw the event log, the newest entry first, each with its cause. */
export function eventTable(entries) {
  if (!entries.length) return h("p.muted", "No event yet.");
  return h(
    "table",
    h("thead", h("tr", ["Time", "Event", "From", "Effect"].map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", entries.toReversed().slice(0, 300).map(eventRow)),
  );
}

function eventRow({ event, outcome, state_before: before, state_after: after, at, cause, notice }) {
  const name = plain(event.type.replace(/^workspaced\./, "").replace(/\.v\d+$/, "").replaceAll("_", " "));
  const effect = outcome === "moved" ? (before === after ? "new build" : `${label(before)} → ${label(after)}`) : outcome;
  return h(
    "tr",
    { title: localTime(at) },
    h("td", timeOf(at)),
    h("td", name, about(event.data), notice ? h("div.muted", plain(notice)) : null),
    h("td", h("span", { title: plain(event.source) }, plain(event.source).replace(/([0-9a-f]{8})-[0-9a-f-]{27}$/, "$1…")), cause && cause.id !== event.id ? h("div.muted", `because of ${plain(cause.type.replace(/^workspaced\./, "").replace(/\.v\d+$/, "").replaceAll("_", " "))}`) : null),
    h("td", h(`span.effect.${outcome}`, effect)),
  );
}

function about(data) {
  const text = data.tool ?? data.error ?? data.lifecycle ?? data.reason ?? data.transition;
  return text ? h("div.muted.clip", plain(text)) : null;
}
