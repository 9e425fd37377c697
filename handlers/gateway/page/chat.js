// One chat: what happens to it now, why, and what to do; its logs, builds, calls and events.
import { address, get, Problem, send } from "./api.js";
import { clock, duration, fill, h, marked, onFrame, plain, setText, timeOf, toast } from "./dom.js";
import { LogView } from "./log.js";
import { acceptsCommands, failureTitle, heldUp, isFailedBuild, label, nameOf, nextStep, ownerOf, poolProblem, settled, tone } from "./states.js";
import { buildsOf, buildTable, eventTable, Observed, phaseBars, staysOf } from "./timeline.js";

export class ChatView {
  constructor(app, id) {
    this.app = app;
    this.id = id;
    this.entries = [];
    this.observed = new Observed();
    this.calls = [];
    this.log = new LogView(id, app.mayRunCommands);
    this.draw = onFrame(() => this.render());
    this.chosenBuild = null;
  }

  get chat() {
    return this.app.chats.get(this.id);
  }

  mount() {
    this.title = h("h1", "…");
    this.pill = h("span.pill.idle", { role: "status" }, "…");
    this.facts = h("p.facts");
    this.actions = h("div.actions");
    this.now = h("div.now");
    this.failure = h("div.failure", { hidden: true, role: "alert" });
    this.life = h("div.life");
    this.openCalls = h("section.calls", { hidden: true });
    this.builds = h("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Builds" });
    this.events = h("div.scroll", { tabIndex: 0, role: "region", "aria-label": "Event log" });
    this.dialog = h("dialog", { "aria-labelledby": "dialog-title" });
    const view = h(
      "section.chat",
      this.app.session.chat_ids.length === 1 ? null : h("a.back", { href: "#/" }, "← Chats"),
      h("div.toolbar", this.title, this.pill, h("span.grow"), this.actions),
      this.facts,
      this.now,
      this.failure,
      this.life,
      this.openCalls,
      this.log.mount(),
      h("section", h("h2", "Builds"), this.builds, this.app.isOperator ? null : h("p.muted.note", this.notShown())),
      this.app.isOperator ? h("section", h("h2", "Events"), this.events) : null,
      this.dialog,
    );
    this.ticking = setInterval(() => this.draw(), 1000);
    this.draw();
    this.read();
    return view;
  }

  /** Return what the session may not see, in words. */
  notShown() {
    const { role, exec } = this.app.session;
    const builds = "Builds from before this page was opened, and the event log, are shown to operators only.";
    if (exec) return builds;
    const flag = role === "chat" ? "with --no-exec" : "without --exec";
    return `${builds} Commands that run in the workspace are not shown: the token of this session was issued ${flag}.`;
  }

  unmount() {
    clearInterval(this.ticking);
    clearTimeout(this.later);
    this.log.unmount();
    this.gone = true;
  }

  // -- reading -----------------------------------------------------------------------------------

  /** Read the chat, its calls and its event log; what is known of the log is not read again. */
  async read() {
    if (this.readingChat) return void (this.again = true);
    this.readingChat = true;
    try {
      do {
        this.again = false;
        const chat = await get(`/v1/chats/${this.id}?details=true`);
        this.calls = chat.open_calls;
        delete chat.open_calls;
        this.app.remember(chat);
        this.observed.add(this.chat);
        if (this.app.isOperator) await this.readEvents();
        this.app.health.reading(null);
        this.draw();
        if (this.gone) return;
      } while (this.again);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (problem.status === 403 || problem.status === 400) fill(this.now, h("p.fault", problem.message));
      else if (!this.gone) {
        this.app.health.reading(problem);
        this.later = setTimeout(() => this.read(), 2000); // back-off
      }
    } finally {
      this.readingChat = false;
    }
  }

  async readEvents() {
    for (;;) {
      const after = this.entries.at(-1)?.seq;
      const page = await get(address(`/v1/chats/${this.id}/events`, { after }));
      const fresh = page.events.filter((entry) => entry.seq > (this.entries.at(-1)?.seq ?? 0));
      this.entries.push(...fresh);
      if (page.next === undefined) return;
    }
  }

  changed(chat) {
    if (chat.chat_id !== this.id) return;
    this.observed.add(chat);
    if (chat.build && !settled(chat.state)) this.app.health.soon(); // the figures of its pool
    this.showState();
    this.draw();
    clearTimeout(this.later);
    this.later = setTimeout(() => this.read(), 120); // changes come in groups
  }

  judged() {
    this.draw();
  }

  logged(event) {
    this.log.live(event.data);
  }

  exec(event) {
    this.log.command(event);
  }

  resumed() {
    this.read();
    this.log.readOn();
  }

  // -- drawing -----------------------------------------------------------------------------------

  showState() {
    const chat = this.chat;
    setText(this.pill, chat.build?.cancel_requested_at && !settled(chat.state) ? "Canceling" : label(chat.state));
    this.pill.className = `pill big ${tone(chat.state)}`;
  }

  render() {
    const chat = this.chat;
    if (!chat || this.gone) return;
    this.showState();
    const name = chat.workspace ? nameOf(chat) : `Chat ${this.id.slice(0, 8)}`;
    setText(this.title, name);
    document.title = `${name} · ${label(chat.state)}`;
    this.renderFacts(chat);
    this.renderActions(chat);
    const stays = this.app.isOperator ? staysOf(this.entries) : this.observed.stays;
    const { status } = this.app.health;
    const held = chat.state === "failed" ? "" : heldUp(chat, status);
    const problem = poolProblem(chat, status);
    fill(
      this.now,
      chat.build ? phaseBars(chat, stays) : null,
      held ? h(problem ? "p.held.wrong" : "p.held", held) : null,
      problem ? h("p.next", h("strong", "What to do: "), marked(problem.do)) : null,
    );
    this.renderFailure(chat);
    this.renderLife(chat);
    this.renderCalls();
    const build = this.chosenBuild ?? this.loggedBuild(chat);
    if (build) this.log.show(build);
    const seen = this.app.isOperator ? this.entries.at(-1)?.seq : JSON.stringify(this.observed.builds());
    const shown = `${seen}:${this.log.buildId}`;
    if (this.shown === shown) return;
    this.shown = shown;
    const builds = this.app.isOperator ? buildsOf(this.entries) : this.observed.builds();
    fill(this.builds, buildTable(builds, this.log.buildId, (id) => this.chooseBuild(id)));
    if (this.app.isOperator) fill(this.events, eventTable(this.entries));
  }

  /** The build whose log is shown: the followed one. A workspace that stopped shows its stop. */
  loggedBuild(chat) {
    return chat.build?.id ?? buildsOf(this.entries)[0]?.id;
  }

  chooseBuild(id) {
    this.chosenBuild = id === this.chat?.build?.id ? null : id;
    this.draw();
  }

  renderFacts(chat) {
    const { details, build, agent } = chat;
    const facts = [
      ["Owner", ownerOf(chat)],
      ["Template", plain(details?.template_name ?? "") || "–"],
      ["Build", build ? `${build.number} (${build.transition})${build.pool ? ` in pool ${plain(build.pool)}` : ""}` : "–"],
      ["Agent", agent ? plain(`${agent.name}, ${agent.status}`) : "–"],
      ["Chat", this.id],
    ];
    const key = facts.join();
    if (this.factsKey === key) return;
    this.factsKey = key;
    fill(this.facts, facts.map(([name, value]) => h("span.fact", h("span.muted", `${name} `), h("span", { title: value }, value))));
  }

  renderActions(chat) {
    if (!this.app.mayAct) return;
    const { state, build } = chat;
    const canceled = Boolean(build?.cancel_requested_at);
    const busy = state === "building" || state === "stopping";
    const open = busy || (state === "failed" && chat.failure?.reason === "build_timeout");
    const known = Boolean(chat.details?.owner_id) || this.app.session.role === "chat";
    const terminal = this.app.mayRunCommands && acceptsCommands(chat);
    const key = [state, canceled, known, build?.id, chat.failure?.reason, terminal].join();
    if (this.actionsKey === key) return;
    this.actionsKey = key;
    const start = ["stopped", "failed"].includes(state) && chat.workspace && !open;
    const stop = ["ready", "scripts_running", "agent_connecting", "failed"].includes(state) && chat.workspace && !open;
    fill(
      this.actions,
      terminal ? h("a.button", { href: `/page/terminal.html#${this.id}`, target: "_blank", title: "Opens in a new tab" }, "Terminal") : null,
      start && known ? h("button.primary", { onclick: () => this.call("start_workspace", "Start requested") }, "Start") : null,
      stop && known ? h("button", { onclick: () => this.call("stop_workspace", "Stop requested") }, "Stop") : null,
      open && !canceled ? h("button", { onclick: () => this.cancelBuild() }, "Cancel build") : null,
      isFailedBuild(chat) ? h("a.button", { href: `#/create/${this.id}`, title: "A new workspace takes the place of this one" }, "Create anew…") : null,
      state === "none" && this.app.isOperator ? h("a.button.primary", { href: `#/create/${this.id}` }, "Create workspace") : null,
      chat.workspace && this.app.isOperator && !busy ? h("button.danger", { onclick: () => this.confirmDelete() }, "Delete…") : null,
    );
  }

  renderFailure(chat) {
    const tail = chat.failure ? this.log.tail(8) : [];
    const key = chat.failure ? `${chat.version}:${tail.join("\n")}` : "";
    if (this.failureKey === key) return;
    this.failureKey = key;
    this.failure.hidden = !chat.failure;
    if (!chat.failure) return;
    const [what, ...more] = chat.failure.message.split("\n");
    const lines = more.length ? more : tail;
    fill(
      this.failure,
      h("h2", failureTitle(chat)),
      h("p.message", plain(what)),
      lines.length ? h("pre", { tabIndex: 0, "aria-label": "Last lines" }, lines.map(plain).join("\n")) : null,
      h("p.next", h("strong", "What to do: "), nextStep(chat)),
    );
    const end = this.failure.querySelector("pre");
    if (end) end.scrollTop = end.scrollHeight;
  }

  renderLife(chat) {
    if (!chat.stops_at) return void fill(this.life);
    const seconds = (Date.parse(chat.stops_at) - clock.now()) / 1000;
    const text = seconds > 0 ? `Stops in ${duration(seconds)} if nobody uses it` : "Stops now";
    if (!this.life.firstChild) {
      this.lifeText = h("span");
      fill(
        this.life,
        this.lifeText,
        this.app.mayAct ? h("button.small", { onclick: () => this.keep() }, "Keep for 2 hours") : null,
      );
    }
    setText(this.lifeText, text);
    this.lifeText.title = new Date(chat.stops_at).toString();
  }

  renderCalls() {
    this.openCalls.hidden = !this.calls.length;
    const key = JSON.stringify(this.calls);
    if (this.callsKey === key) return;
    this.callsKey = key;
    fill(
      this.openCalls,
      h("h2", "Open calls"),
      h(
        "ul",
        this.calls.map((call) =>
          h(
            "li",
            h("strong", plain(call.tool)),
            h("span.muted", " asked ", timeOf(call.asked_at), " · ", h("code", plain(call.call_id))),
            this.app.mayAct
              ? h("button.small", { "aria-label": `Cancel the call ${call.call_id}`, onclick: () => this.cancelCall(call.call_id) }, "Cancel call")
              : null,
          ),
        ),
      ),
    );
  }

  // -- actions -----------------------------------------------------------------------------------

  async act(request, done) {
    try {
      const answer = await request();
      if (done) toast(typeof done === "function" ? done(answer.body) : done);
      this.read();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      toast(problem.message, "error");
    }
  }

  call(tool, done) {
    return this.act(() => this.app.call(this.id, tool, {}, this.chat.details), done);
  }

  cancelBuild() {
    const build = this.chat.build;
    return this.act(
      () => send("POST", `/v1/chats/${this.id}/build/cancel`, { build_id: build.id, reason: "canceled on the page" }),
      (found) => (found.canceled ? "The build is being canceled" : "That build is no longer running"),
    );
  }

  cancelCall(callId) {
    return this.act(() => send("DELETE", `/v1/chats/${this.id}/calls/${callId}`), "The call is canceled; its build goes on");
  }

  keep() {
    return this.act(() => send("POST", `/v1/chats/${this.id}/keep`, { seconds: 7200 }), "Kept for at least two hours");
  }

  confirmDelete() {
    const name = nameOf(this.chat);
    const close = () => this.dialog.close();
    fill(
      this.dialog,
      h("h2", { id: "dialog-title" }, `Delete ${name}?`),
      h("p", "The workspace and everything in it are deleted. This can't be undone."),
      h(
        "div.buttons",
        h("button", { onclick: close, autofocus: true }, "Keep it"),
        h(
          "button.danger.solid",
          {
            onclick: () => {
              close();
              this.act(() => send("DELETE", `/v1/chats/${this.id}/workspace`), "Delete requested");
            },
          },
          "Delete",
        ),
      ),
    );
    this.dialog.showModal();
  }
}
