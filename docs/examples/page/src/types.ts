// Made from docs/schemas by `npm run types`, do not edit.

/**
 * What a build does to its workspace.
 */
export type Transition = "start" | "stop" | "delete";
/**
 * The progress of an agent's startup or shutdown scripts.
 *
 * All values but `created` and `starting` end the wait for the startup scripts.
 */
export type Lifecycle =
  | "created"
  | "starting"
  | "start_timeout"
  | "start_error"
  | "ready"
  | "shutting_down"
  | "shutdown_timeout"
  | "shutdown_error"
  | "off";
/**
 * The reason for the state `failed`.
 */
export type FailureReason =
  | "build_failed"
  | "build_canceled"
  | "build_timeout"
  | "selection_error"
  | "agent_not_ready"
  | "startup_scripts_failed"
  | "startup_scripts_timeout";

export interface Messages {
  state_changed: WorkspacedStateChangedV1;
  log_appended: WorkspacedLogAppendedV1;
  exec_started: WorkspacedExecStartedV1;
  exec_output: WorkspacedExecOutputV1;
  exec_exited: WorkspacedExecExitedV1;
  frontend_credential_reply: FrontendKey;
  read_log_body: LogBody;
  read_log_reply: LinesPage;
}
/**
 * The state of a chat after a change.
 */
export interface WorkspacedStateChangedV1 {
  specversion: "1.0";
  /**
   * A UUID that cannot be guessed. A second event with the same `source` and `id` has no effect.
   */
  id: string;
  /**
   * `/chat/<service>`, `/provisioner/<name>`, `/agent/<agent_id>` or `/workspaced`.
   */
  source: string;
  type: "workspaced.state_changed.v1";
  /**
   * The chat id, equal to the one in the NATS subject.
   */
  subject: string;
  /**
   * RFC 3339. workspaced writes UTC with `Z`. If the key is absent, workspaced uses the time of receipt.
   */
  time?: string;
  /**
   * workspaced writes `application/json`.
   */
  datacontenttype?: string;
  /**
   * A W3C trace context. Events that result from this one have the same trace id.
   */
  traceparent?: string;
  data: StateChanged;
}
/**
 * The state of a chat after a change.
 */
export interface StateChanged {
  chat_id: string;
  /**
   * Rises by 1 with each change of any other key. Discard a state whose version is not above the last one that you received.
   */
  version: number;
  state: "none" | "building" | "agent_connecting" | "scripts_running" | "ready" | "failed" | "stopping" | "stopped";
  previous_state:
    "none" | "building" | "agent_connecting" | "scripts_running" | "ready" | "failed" | "stopping" | "stopped";
  /**
   * Null if the chat has no workspace.
   */
  workspace: ShownWorkspace | null;
  /**
   * Null only in the state `none`.
   */
  build: ShownBuild | null;
  /**
   * Null until an agent is chosen.
   */
  agent: ShownAgent | null;
  /**
   * Set in the state `failed` and in no other.
   */
  failure: ShownFailure | null;
  /**
   * When the limit of the state passes. Set in all states that have a limit (`building`, `agent_connecting`, `scripts_running` and `stopping`), and in no other.
   */
  deadline: string | null;
  /**
   * Null only at version 0.
   */
  cause: ShownCause | null;
  /**
   * When workers stop the workspace if nobody uses it until then; null while it does not run or has no lifetime.
   */
  stops_at: string | null;
}
/**
 * The chat's current workspace.
 */
export interface ShownWorkspace {
  id: string;
  /**
   * The workspace's name without its owner, or its id if no fact contained the name.
   */
  name: string;
  /**
   * Null if the workspace was made elsewhere and no fact contained the owner's name.
   */
  owner_name: string | null;
  /**
   * Null if the workspace was made elsewhere and no fact contained the template.
   */
  template_id: string | null;
}
/**
 * The newest build of the workspace.
 */
export interface ShownBuild {
  id: string;
  /**
   * Rises with each build of a workspace.
   */
  number: number;
  transition: Transition;
  /**
   * When the build was requested or, if it was made elsewhere, first reported.
   */
  started_at: string;
  /**
   * When its `build_started` was stored, or its terminal fact if that came first. Null: no provisioner has begun it.
   */
  begun_at: string | null;
  /**
   * When it was canceled; null if it was not.
   */
  cancel_requested_at: string | null;
  /**
   * The pool whose provisioners work on it. Null if the build was made elsewhere.
   */
  pool: string | null;
}
/**
 * The agent that was chosen for the chat.
 */
export interface ShownAgent {
  id: string;
  name: string;
  status: "connecting" | "connected" | "disconnected" | "timeout";
  /**
   * Null until the agent reports its lifecycle.
   */
  lifecycle: Lifecycle | null;
  /**
   * Text for people: why the agent is gone; null if it is not, or if the reason is not known.
   */
  reason: string | null;
}
/**
 * Why the state is `failed`.
 */
export interface ShownFailure {
  reason: FailureReason;
  /**
   * Text for people.
   */
  message: string;
  /**
   * The `error_code` of `build_failed`, if it had one.
   */
  error_code?: string;
}
/**
 * The event that caused a change.
 */
export interface ShownCause {
  /**
   * The event's `source`; `/workspaced` if a limit passed.
   */
  source: string;
  /**
   * The event's `id`.
   */
  id: string;
  /**
   * The event's `type`; `workspaced.deadline_passed.v1` if the limit of a state passed.
   */
  type: string;
}
/**
 * Output of a build or of an agent's scripts.
 */
export interface WorkspacedLogAppendedV1 {
  specversion: "1.0";
  /**
   * A UUID that cannot be guessed. A second event with the same `source` and `id` has no effect.
   */
  id: string;
  /**
   * `/chat/<service>`, `/provisioner/<name>`, `/agent/<agent_id>` or `/workspaced`.
   */
  source: string;
  type: "workspaced.log_appended.v1";
  /**
   * The chat id, equal to the one in the NATS subject.
   */
  subject: string;
  /**
   * RFC 3339. workspaced writes UTC with `Z`. If the key is absent, workspaced uses the time of receipt.
   */
  time?: string;
  /**
   * workspaced writes `application/json`.
   */
  datacontenttype?: string;
  /**
   * A W3C trace context. Events that result from this one have the same trace id.
   */
  traceparent?: string;
  data: LogAppended;
}
/**
 * Output of a build or of an agent's scripts.
 */
export interface LogAppended {
  build_id: string;
  origin: "provisioner" | "agent";
  /**
   * The part of the build or scripts that wrote the output.
   */
  stage: string;
  /**
   * workspaced's own provisioner and agent use `info`, `warn` and `error`.
   */
  level: string;
  /**
   * One or more lines, at most 32 KiB.
   */
  output: string;
  /**
   * Counts from 1 for each build and origin. Readers sort by it and discard repeats.
   */
  sequence: number;
}
/**
 * Data of `exec_started`.
 */
export interface WorkspacedExecStartedV1 {
  specversion: "1.0";
  /**
   * A UUID that cannot be guessed. A second event with the same `source` and `id` has no effect.
   */
  id: string;
  /**
   * `/chat/<service>`, `/provisioner/<name>`, `/agent/<agent_id>` or `/workspaced`.
   */
  source: string;
  type: "workspaced.exec_started.v1";
  /**
   * The chat id, equal to the one in the NATS subject.
   */
  subject: string;
  /**
   * RFC 3339. workspaced writes UTC with `Z`. If the key is absent, workspaced uses the time of receipt.
   */
  time?: string;
  /**
   * workspaced writes `application/json`.
   */
  datacontenttype?: string;
  /**
   * A W3C trace context. Events that result from this one have the same trace id.
   */
  traceparent?: string;
  data: ExecStarted;
}
/**
 * Data of `exec_started`.
 */
export interface ExecStarted {
  exec_id: string;
  call_id: string;
  command: string;
  cwd: string;
}
/**
 * Data of `exec_output`.
 */
export interface WorkspacedExecOutputV1 {
  specversion: "1.0";
  /**
   * A UUID that cannot be guessed. A second event with the same `source` and `id` has no effect.
   */
  id: string;
  /**
   * `/chat/<service>`, `/provisioner/<name>`, `/agent/<agent_id>` or `/workspaced`.
   */
  source: string;
  type: "workspaced.exec_output.v1";
  /**
   * The chat id, equal to the one in the NATS subject.
   */
  subject: string;
  /**
   * RFC 3339. workspaced writes UTC with `Z`. If the key is absent, workspaced uses the time of receipt.
   */
  time?: string;
  /**
   * workspaced writes `application/json`.
   */
  datacontenttype?: string;
  /**
   * A W3C trace context. Events that result from this one have the same trace id.
   */
  traceparent?: string;
  data: ExecOutput;
}
/**
 * Data of `exec_output`.
 */
export interface ExecOutput {
  exec_id: string;
  offset: number;
  next: number;
  output: string;
}
/**
 * Data of `exec_exited`.
 */
export interface WorkspacedExecExitedV1 {
  specversion: "1.0";
  /**
   * A UUID that cannot be guessed. A second event with the same `source` and `id` has no effect.
   */
  id: string;
  /**
   * `/chat/<service>`, `/provisioner/<name>`, `/agent/<agent_id>` or `/workspaced`.
   */
  source: string;
  type: "workspaced.exec_exited.v1";
  /**
   * The chat id, equal to the one in the NATS subject.
   */
  subject: string;
  /**
   * RFC 3339. workspaced writes UTC with `Z`. If the key is absent, workspaced uses the time of receipt.
   */
  time?: string;
  /**
   * workspaced writes `application/json`.
   */
  datacontenttype?: string;
  /**
   * A W3C trace context. Events that result from this one have the same trace id.
   */
  traceparent?: string;
  data: ExecExited;
}
/**
 * Data of `exec_exited`.
 */
export interface ExecExited {
  exec_id: string;
  exit_code?: number;
  signal?: string;
  reason?: "stopped" | "timeout" | "lost";
  size: number;
}
/**
 * The reply of `frontend_credential`.
 */
export interface FrontendKey {
  /**
   * The seed of the NKey. workspaced does not keep it.
   */
  seed: string;
  /**
   * The inbox prefix with which a client must connect.
   */
  inbox_prefix: string;
  expires_at: string;
  /**
   * Names the key to `revoke_credential`.
   */
  public_key: string;
}
/**
 * The body of `read_log`, which returns the stored log lines of a build, page by page.
 */
export interface LogBody {
  chat_id: string;
  build_id: string;
  /**
   * The `next` of the page before.
   */
  after?: number | null;
}
/**
 * The reply of `read_log`.
 */
export interface LinesPage {
  /**
   * The keys of the request's body, and of a tool's `args`, that this rpc or tool does not have.
   */
  ignored?: string[];
  lines: LogLine[];
  /**
   * Absent if no more lines are stored; otherwise the `after` of the next request.
   */
  next?: number;
}
/**
 * The data of a stored `log_appended`. A key that the sender left out is absent.
 */
export interface LogLine {
  build_id?: string;
  origin?: "provisioner" | "agent";
  stage?: string;
  level?: string;
  output?: string;
  sequence?: number;
}
