// The page: who is signed in, which view is shown, and the one stream that all views share.
import { follow, get, mayRunCommands, onSignedOut, Problem, send } from "./api.js";
import { Board } from "./board.js";
import { ChatView } from "./chat.js";
import { CreateView } from "./create.js";
import { applyTheme, fill, h, plain, setText, toast } from "./dom.js";
import { Health } from "./health.js";
import { OperatorView } from "./operator.js";

class App {
  constructor() {
    this.bar = document.getElementById("bar");
    this.main = document.getElementById("main");
    this.chats = new Map();
    this.view = null;
    this.health = new Health(this);
    this.board = new Board(this);
  }

  get isOperator() {
    return this.session?.role === "operator";
  }

  /** Whether the session may call tools, not only look. */
  get mayAct() {
    return this.session.role === "operator" || this.session.role === "chat";
  }

  get mayRunCommands() {
    return mayRunCommands(this.session);
  }

  async start() {
    onSignedOut(() => this.signIn("Your session has ended."));
    applyTheme(localStorage.getItem("theme") ?? "system");
    const code = new URLSearchParams(location.search).has("code");
    if (code) history.replaceState(null, "", "/");
    try {
      this.session = await get("/page/session");
    } catch (problem) {
      if (problem.status === 401) {
        const used = "This link was used already, or is older than five minutes. Print a new one with workspaced page.";
        return this.signIn(code ? used : "");
      }
      const text = `${problem.message[0].toUpperCase()}${problem.message.slice(1)}.`;
      fill(this.main, h("div.signin", h("h1", "workspaced"), h("p", text), h("p.muted", "The page tries again by itself.")));
      setTimeout(() => this.start(), 2000); // back-off
      return;
    }
    this.header();
    window.addEventListener("hashchange", () => this.route());
    if (this.session.chat_ids.length === 1 && !location.hash.startsWith("#/chat/")) location.replace(`#/chat/${this.session.chat_ids[0]}`);
    this.route();
  }

  signIn(why) {
    this.stop?.();
    this.view?.unmount?.();
    this.view = null;
    this.health.status = null;
    this.health.connection(true);
    fill(this.bar);
    const field = h("input", { type: "password", id: "code", autocomplete: "off", required: true });
    const fault = h("p.fault", { role: "alert" }, why);
    const form = h(
      "form.signin",
      {
        onsubmit: async (event) => {
          event.preventDefault();
          try {
            await send("POST", "/page/login", { code: field.value.trim() });
            location.reload();
          } catch (problem) {
            setText(fault, problem.message);
            field.select();
          }
        },
      },
      h("h1", "workspaced"),
      h("p", "Run ", h("code", "workspaced page"), " and open the link that it prints, or enter a code or a token."),
      fault,
      h("label", { for: "code" }, "Code or token"),
      field,
      h("button.primary", { type: "submit" }, "Sign in"),
    );
    fill(this.main, form);
    field.focus();
  }

  header() {
    this.operations = this.isOperator ? h("a", { href: "#/operator" }, "Operations") : null;
    this.links = h(
      "nav",
      { "aria-label": "Views" },
      this.session.chat_ids.length === 1 ? null : h("a", { href: "#/" }, "Chats"),
      this.operations,
    );
    this.connection = h("span.live", { role: "status" }, "connecting");
    const theme = h("button.quiet", { onclick: () => nextTheme(theme), title: "Change the theme" });
    showTheme(theme);
    fill(
      this.bar,
      h("a.brand", { href: "#/" }, "workspaced"),
      this.links,
      h("span.grow"),
      this.connection,
      h("span.role", { title: `signed in until ${new Date(this.session.expires_at).toLocaleString()}` }, this.session.role),
      theme,
      h("button.quiet", { onclick: () => this.signOut() }, "Sign out"),
    );
  }

  async signOut() {
    try {
      await send("POST", "/page/logout");
    } catch (problem) {
      if (problem.status !== 401) return toast(problem.message, "error");
    }
    location.assign("/");
  }

  route() {
    const [, view = "", id = ""] = location.hash.split("/");
    this.view?.unmount?.();
    const shown =
      view === "chat" && id ? new ChatView(this, id) : view === "create" && this.mayAct ? new CreateView(this, id) : view === "operator" && this.isOperator ? new OperatorView(this) : this.board;
    this.view = shown;
    this.connect(view === "chat" ? [id] : this.session.chat_ids);
    fill(this.main, shown.mount());
    for (const link of this.links.querySelectorAll("a")) {
      if (link.hash === (view === "operator" ? "#/operator" : "#/")) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.health.draw();
    window.scrollTo(0, 0);
  }

  /** Follow these chats, or all: with one stream, which replaces the one before if it follows others. */
  connect(chats) {
    const key = chats.join();
    if (this.following === key) return;
    this.stop?.();
    this.following = key;
    this.begun = false;
    let again = false;
    this.stop = follow(chats, {
      event: (kind, event) => this.event(kind, event),
      status: (text, problem) => {
        setText(this.connection, text);
        this.connection.className = `live ${text}`;
        this.health.connection(text === "live", problem);
      },
      begun: () => {
        this.health.read();
        this.begun = true; // whatever is read from now on, its later states come
        if (again || chats.length) this.view?.resumed?.();
        if (this.view === this.board) this.board.load();
        again = true;
      },
    }, { presence: this.isOperator });
  }

  event(kind, event) {
    if (kind === "state") {
      const before = this.chats.get(event.data.chat_id);
      const chat = this.remember({ ...event.data, details: before?.details }, event.time);
      if (chat) this.view?.changed?.(chat, before, event);
    } else if (kind === "log") this.view?.logged?.(event);
    else if (kind === "exec") this.view?.exec?.(event);
    else if (kind === "presence") this.health.presence();
  }

  /** Call a tool, and say later what became of it if that is not well. Return the first answer. */
  async call(chatId, tool, args, owner, wait = 0) {
    const named = this.session.role === "chat" ? {} : owner;
    const { organization_id, owner_id, owner_name } = named ?? {};
    const path = `/v1/chats/${chatId}/tools/${tool}`;
    const answer = await send("POST", path, { args, organization_id, owner_id, owner_name, wait_seconds: wait });
    if (answer.status === 202) this.await(chatId, answer.body.call_id);
    else this.report(answer.body);
    return answer;
  }

  /** Wait for a call's answer; a gateway that leaves, or a call that takes long, is asked again. */
  async await(chatId, callId) {
    for (let failures = 0; failures < 20; ) {
      try {
        const answer = await send("GET", `/v1/chats/${chatId}/calls/${callId}?wait_seconds=300`);
        if (answer.status === 200) return this.report(answer.body);
      } catch (problem) {
        if (!(problem instanceof Problem) || ![0, 429, 503].includes(problem.status)) return;
        failures += 1;
        await new Promise((done) => setTimeout(done, 2000)); // back-off
      }
    }
  }

  report({ is_error, result }) {
    if (is_error) toast(plain(result.error), "error");
    else if (result.no_build) toast("Nothing to do: it is so already");
  }

  /** Keep a chat's state unless a newer one is known; return it, or null. */
  remember(chat, time = chat.details?.changed_at) {
    const known = this.chats.get(chat.chat_id);
    if (known && known.version > chat.version) return null;
    if (known && known.version === chat.version && known.details && !chat.details) return null;
    chat.since = time ? Date.parse(time) : known?.since;
    if (chat.details && chat.version && known?.version === chat.version) chat.since = known.since ?? chat.since;
    if (chat.details && !chat.details.template_name && known?.details) chat.details.template_name = known.details.template_name;
    this.chats.set(chat.chat_id, chat);
    if (chat.workspace?.template_id && !chat.details?.template_name) this.nameTemplate(chat);
    return chat;
  }

  /** Find the name of a template that a new chat uses. */
  nameTemplate(chat) {
    const id = chat.workspace.template_id;
    this.names ??= new Map();
    for (const other of this.names.size ? [] : this.chats.values()) if (other.details?.template_name) this.names.set(other.workspace?.template_id, other.details.template_name);
    const name = this.names.get(id);
    if (name) chat.details = { ...chat.details, template_name: name };
    else if (!this.names.has(id)) {
      this.names.set(id, null);
      get(`/v1/chats/${chat.chat_id}?details=true`).then(
        (found) => {
          this.names.set(id, found.details.template_name);
          const kept = this.remember(found);
          if (kept) this.view?.changed?.(kept, chat);
        },
        (problem) => {
          this.names.delete(id);
          if (!(problem instanceof Problem)) throw problem;
        },
      );
    }
  }
}

const THEMES = ["system", "light", "dark"];

function showTheme(button) {
  setText(button, { system: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[localStorage.getItem("theme") ?? "system"]);
}

function nextTheme(button) {
  const theme = THEMES[(THEMES.indexOf(localStorage.getItem("theme") ?? "system") + 1) % THEMES.length];
  localStorage.setItem("theme", theme);
  applyTheme(theme);
  showTheme(button);
}

const app = new App();
app.start();
