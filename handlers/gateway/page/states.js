// What the states mean: their labels, and in words what a chat waits for and what to do next.
import { duration, plain } from "./dom.js";

export const STATES = {
  building: ["Building", "busy"],
  agent_connecting: ["Connecting", "busy"],
  scripts_running: ["Starting up", "busy"],
  ready: ["Ready", "good"],
  failed: ["Failed", "bad"],
  stopping: ["Stopping", "busy"],
  stopped: ["Stopped", "idle"],
  none: ["No workspace", "idle"],
};

const FAILURES = {
  build_failed: "The build failed",
  build_canceled: "The build was canceled",
  build_timeout: "The build ran out of time",
  selection_error: "No agent can be chosen",
  agent_not_ready: "The agent never connected",
  startup_scripts_failed: "A startup script failed",
  startup_scripts_timeout: "Startup scripts ran out of time",
};

const NEXT = {
  build_failed:
    "Read the end of the log below. Start builds the same version of the template again; if the template is the cause, push it corrected and create the workspace anew.",
  build_canceled: "Start it again whenever you want.",
  build_timeout: "The provisioner may still finish. Cancel the build, or ask again to wait longer.",
  selection_error: "Correct the template's agents, push it, then stop and start the workspace.",
  agent_not_ready: "Stop the workspace, then start it again.",
  startup_scripts_failed: "The workspace can be used. Correct the script in the template, then stop and start.",
  startup_scripts_timeout: "The workspace can be used; the script may still end.",
};

export function label(state) {
  return STATES[state]?.[0] ?? state;
}

export function tone(state) {
  return STATES[state]?.[1] ?? "idle";
}

/** Whether the state lasts until somebody asks for something. */
export function settled(state) {
  return ["ready", "failed", "stopped", "none"].includes(state);
}

/** Whether the workspace takes commands: its agent is connected, and its start is over or under way. */
export function acceptsCommands(chat) {
  const started = ["scripts_running", "ready"].includes(chat.state) || chat.failure?.reason?.startsWith("startup_scripts_");
  return Boolean(started) && chat.agent?.status === "connected";
}

export function nameOf(chat) {
  return plain(chat.workspace?.name ?? "") || "–";
}

export function ownerOf(chat) {
  return plain(chat.workspace?.owner_name ?? chat.details?.owner_name ?? "") || "–";
}

/** Whether the workspace could not be built, so that a new one may take its place. */
export function isFailedBuild(chat) {
  return ["build_failed", "build_canceled"].includes(chat.failure?.reason) && chat.build?.transition === "start";
}

export function failureTitle(chat) {
  const failure = chat.failure;
  if (!failure) return "";
  const stop = chat.build && chat.build.transition !== "start";
  const title = FAILURES[failure.reason] ?? failure.reason;
  return stop ? title.replace("The build", `The ${chat.build.transition}`) : title;
}

export function nextStep(chat) {
  const failure = chat.failure;
  if (!failure) return "";
  if (failure.error_code === "INSUFFICIENT_QUOTA") return "Stop or delete another workspace of this owner, then try again.";
  if (chat.build && chat.build.transition !== "start") return "It is tried again by itself if it must be. You can also try it again now.";
  return NEXT[failure.reason] ?? "";
}

/** Return the problem, `{what, do}`, of the pool whose provisioners should carry on a chat's build, if it has one. */
export function poolProblem(chat, status) {
  const { build, state } = chat;
  if (!build?.pool || !["building", "stopping"].includes(state)) return undefined;
  return status?.problems.find((problem) => problem.where === `pool ${build.pool}`);
}

/** Return in one line what a chat waits for, or what is wrong with it; empty if nothing is. `status` may be null. */
export function heldUp(chat, status) {
  const { build, agent, state } = chat;
  const problem = poolProblem(chat, status);
  if (problem) return plain(`Pool ${build.pool}: ${problem.what}`);
  if (state === "failed") return plain(`${failureTitle(chat)}: ${lastLine(chat.failure?.message)}`);
  if (chat.notice) return plain(chat.notice);
  if (build?.cancel_requested_at && !settled(state)) return "Canceled; waiting for the provisioner to confirm";
  if (state === "building" || state === "stopping") {
    const what = { start: "Build", stop: "Stop", delete: "Delete" }[build?.transition] ?? "Build";
    if (!build?.begun_at) return plain(`Queued: no provisioner of pool ${build?.pool ?? "?"} has begun it`);
    return `${what} ${build.number} is running`;
  }
  if (state === "agent_connecting") return plain(`Waiting for agent ${agent?.name ?? ""} to connect`);
  if (state === "scripts_running") return "Startup scripts are running";
  if (state === "ready" && agent && agent.status !== "connected") {
    return plain(`Agent ${agent.name} is ${agent.status}${agent.reason ? `: ${lastLine(agent.reason)}` : ""}`);
  }
  return "";
}

/** Whether a person should look at the chat. */
export function needsAttention(chat, status) {
  return chat.state === "failed" || Boolean(poolProblem(chat, status)) || Boolean(chat.notice) || (chat.state === "ready" && chat.agent && chat.agent.status !== "connected");
}

function lastLine(text) {
  const lines = String(text ?? "").trim().split("\n");
  return lines[lines.length - 1];
}

/** Return how much of a limit is left, in words. */
export function left(deadline, now) {
  const seconds = (Date.parse(deadline) - now) / 1000;
  return seconds > 0 ? `${duration(seconds)} left` : "limit passed";
}
