// The board: all chats that the session may see, live. Only the rows in view are in the document.
import { address, get, Problem } from "./api.js";
import { age, clock, fill, h, onFrame, plain, setText, toast } from "./dom.js";
import { heldUp, label, nameOf, needsAttention, ownerOf, STATES, tone } from "./states.js";

const SPARE = 12; // rows kept above and below those in view
const MOST = 20000; // chats that are loaded; filters find the others

export class Board {
  constructor(app) {
    this.app = app;
    this.filter = { state: "", query: "", template_id: "", attention: false };
    this.order = "recent";
    this.rows = [];
    this.elements = new Map();
    this.draw = onFrame(() => this.render());
    this.resort = onFrame(() => this.sort());
    this.reading = null;
  }

  mount() {
    this.elements = new Map(); // a frame that was asked for before may have drawn into the body before
    this.search = h("input", {
      type: "search",
      id: "search",
      placeholder: "Name, owner or chat id",
      "aria-label": "Search chats",
      autocomplete: "off",
      spellcheck: "false",
      value: this.filter.query,
      oninput: () => {
        clearTimeout(this.typing);
        this.typing = setTimeout(() => this.set({ query: this.search.value.trim() }), 200);
      },
    });
    this.state = h(
      "select",
      { "aria-label": "State", onchange: () => this.set({ state: this.state.value }) },
      h("option", { value: "" }, "Every state"),
      Object.entries(STATES).map(([state, [name]]) => h("option", { value: state }, name)),
    );
    this.state.value = this.filter.state;
    this.template = h("select", { "aria-label": "Template", onchange: () => this.set({ template_id: this.template.value }) });
    this.sorting = h(
      "select",
      {
        "aria-label": "Order",
        onchange: () => {
          this.order = this.sorting.value;
          this.sort();
        },
      },
      [["recent", "Latest change first"], ["oldest", "Oldest change first"], ["attention", "Problems first"], ["name", "By name"]].map(([value, name]) =>
        h("option", { value }, name),
      ),
    );
    this.sorting.value = this.order;
    this.count = h("p.count", { role: "status" });
    this.body = h("div.rows", { role: "rowgroup" });
    this.scroller = h(
      "div.table",
      { role: "table", "aria-label": "Chats", tabIndex: 0, onscroll: () => this.draw() },
      h(
        "div.head",
        { role: "row" },
        ["State", "Workspace", "Owner", "Template", "What holds it up", "Since"].map((title, at) => h(`div.c${at}`, { role: "columnheader" }, title)),
      ),
      this.body,
    );
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.empty = h("div.empty", { hidden: true });
    const view = h(
      "section.board",
      h(
        "div.toolbar",
        h("h1", "Chats"),
        this.count,
        h("span.grow"),
        this.app.mayAct ? h("a.button.primary", { href: "#/create" }, "Create workspace") : null,
      ),
      this.app.isOperator ? h("div.filters", h("div.searchbox", this.search), this.state, this.template, this.sorting) : null,
      this.scroller,
      this.empty,
    );
    this.resized = new ResizeObserver(() => this.resize());
    this.resized.observe(this.scroller);
    this.ticking = setInterval(() => this.draw(), 1000);
    this.templates();
    if (this.app.begun) this.load();
    else this.loading = true; // until the stream begins
    this.sort();
    return view;
  }

  unmount() {
    this.reading?.abort();
    this.resized.disconnect();
    clearInterval(this.ticking);
    clearTimeout(this.typing);
    clearTimeout(this.later);
    this.body = null;
  }

  set(change) {
    Object.assign(this.filter, change);
    this.scroller.scrollTop = 0;
    this.load();
  }

  /** Read the chats that fit from the server, page by page; show each page as it comes. */
  async load() {
    this.reading?.abort();
    clearTimeout(this.later);
    const reading = (this.reading = new AbortController());
    const chats = this.app.chats;
    const seen = new Set();
    this.loading = true;
    this.sort();
    try {
      if (this.app.isOperator) {
        let cursor = "";
        do {
          const { state, query, template_id } = this.filter;
          const page = await get(address("/v1/chats", { state, query, template_id, cursor, details: true }));
          if (reading.signal.aborted) return;
          for (const chat of page.chats) {
            seen.add(chat.chat_id);
            this.app.remember(chat);
          }
          cursor = page.next ?? "";
          this.resort();
        } while (cursor && seen.size < MOST);
        this.more = Boolean(cursor);
      } else {
        for (const id of this.app.session.chat_ids) this.app.remember(await get(`/v1/chats/${id}?details=true`));
      }
      this.app.health.reading(null);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      this.app.health.reading(problem);
      if (problem.status && problem.status !== 503) toast(`The chats can't be read: ${problem.message}`, "error");
      else if (this.body && !reading.signal.aborted) this.later = setTimeout(() => this.load(), 2000); // back-off
    } finally {
      if (!reading.signal.aborted) {
        this.loading = false;
        this.templates();
        this.sort();
      }
    }
    return chats;
  }

  /** Fill the list of templates with those of the chats that are known. */
  templates() {
    const names = new Map();
    for (const chat of this.app.chats.values()) {
      const id = chat.workspace?.template_id;
      if (id && chat.details?.template_name) names.set(id, chat.details.template_name);
    }
    const chosen = this.filter.template_id;
    if (chosen && !names.has(chosen)) names.set(chosen, chosen);
    const options = [...names].sort((a, b) => a[1].localeCompare(b[1]));
    fill(this.template, h("option", { value: "" }, "Every template"), options.map(([id, name]) => h("option", { value: id }, plain(name))));
    this.template.value = chosen;
  }

  fits(chat) {
    const { state, query, template_id } = this.filter;
    if (state && chat.state !== state) return false;
    if (!state && !query && chat.state === "none" && !chat.version) return false;
    if (template_id && chat.workspace?.template_id !== template_id) return false;
    if (!query) return true;
    const names = [chat.chat_id, chat.workspace?.name, chat.workspace?.owner_name, chat.details?.owner_name];
    return names.join(" ").toLowerCase().includes(query.toLowerCase());
  }

  /** A chat has changed: draw it, and put it in its place soon. */
  changed(chat, before) {
    if (before && this.fits(before) && this.fits(chat) && this.order !== "attention") {
      const element = this.elements.get(chat.chat_id);
      if (element) update(element, chat, this.app.health.status);
      if (this.order === "recent" && this.scroller.scrollTop < 4) this.resort();
      return;
    }
    this.resort();
  }

  /** The status was read: it may say what holds chats up. */
  judged() {
    this.sort();
  }

  isBad(chat) {
    return needsAttention(chat, this.app.health.status);
  }

  sort() {
    if (!this.body) return;
    const rows = [...this.app.chats.values()].filter((chat) => this.fits(chat));
    const since = (chat) => chat.since ?? 0;
    const orders = {
      recent: (a, b) => since(b) - since(a),
      oldest: (a, b) => since(a) - since(b),
      attention: (a, b) => Number(this.isBad(b)) - Number(this.isBad(a)) || since(b) - since(a),
      name: (a, b) => nameOf(a).localeCompare(nameOf(b)),
    };
    this.rows = rows.sort(orders[this.order]).map((chat) => chat.chat_id);
    const bad = rows.filter((chat) => this.isBad(chat)).length;
    const number = this.rows.length.toLocaleString();
    const { state, query, template_id } = this.filter;
    const nothing = !this.rows.length && !this.loading && !state && !query && !template_id;
    setText(
      this.count,
      nothing ? "" : `${number}${this.more ? "+" : ""} shown${bad ? `, ${bad.toLocaleString()} need${bad === 1 ? "s" : ""} attention` : ""}${this.loading ? " · loading…" : ""}`,
    );
    this.empty.hidden = this.rows.length > 0 || this.loading;
    this.scroller.classList.toggle("none", this.rows.length === 0);
    if (!this.empty.hidden) this.explainEmpty();
    this.draw();
  }

  explainEmpty() {
    const { state, query, template_id } = this.filter;
    if (state || query || template_id) {
      const all = () => {
        this.search.value = this.state.value = this.template.value = "";
        this.set({ state: "", query: "", template_id: "" });
      };
      fill(this.empty, h("p", "No chat fits these filters."), h("button", { onclick: all }, "Show all"));
    } else {
      fill(
        this.empty,
        h("p", "No chat has a workspace yet."),
        this.app.mayAct ? h("p.muted", "Create one here, or with ", h("code", "workspaced create TEMPLATE"), ".") : null,
      );
    }
  }

  render() {
    if (!this.body) return;
    const height = (this.height ??= this.measure());
    const head = this.scroller.firstElementChild.offsetHeight;
    const top = Math.max(0, this.scroller.scrollTop - head);
    const first = Math.max(0, Math.floor(top / height) - SPARE);
    const last = Math.min(this.rows.length, Math.ceil((top + this.scroller.clientHeight) / height) + SPARE);
    this.body.style.height = `${this.rows.length * height}px`;
    this.scroller.setAttribute("aria-rowcount", String(this.rows.length + 1));
    const kept = new Set();
    for (let at = first; at < last; at++) {
      const id = this.rows[at];
      const chat = this.app.chats.get(id);
      kept.add(id);
      let element = this.elements.get(id);
      if (!element) {
        element = makeRow();
        element.link.href = `#/chat/${id}`;
        this.elements.set(id, element);
        this.body.append(element);
      }
      if (element.place !== at) {
        element.place = at;
        element.style.transform = `translateY(${at * height}px)`;
        element.setAttribute("aria-rowindex", String(at + 2));
      }
      update(element, chat, this.app.health.status);
    }
    for (const [id, element] of this.elements) {
      if (kept.has(id)) continue;
      if (element.link === document.activeElement) continue; // keep the focus
      element.remove();
      this.elements.delete(id);
    }
  }

  /** Rows are higher on a narrow screen: measure again, and put each row in its place. */
  resize() {
    this.height = undefined;
    for (const element of this.elements.values()) element.place = -1;
    this.draw();
  }

  measure() {
    const probe = makeRow();
    this.body.append(probe);
    const height = probe.offsetHeight || 44;
    probe.remove();
    return height;
  }

  /** Arrow keys, Home and End move between rows. */
  key(event) {
    const row = event.target.closest(".row");
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (!row || step === undefined) return;
    event.preventDefault();
    this.render(); // the window may just have changed its size
    const place = Math.min(this.rows.length - 1, Math.max(0, row.place + step));
    this.scroller.scrollTop = Math.max(0, place * this.height - this.scroller.clientHeight / 2);
    this.render();
    this.elements.get(this.rows[place])?.link.focus({ preventScroll: true });
  }
}

function makeRow() {
  const cells = [0, 1, 2, 3, 4, 5].map((at) => h(`div.c${at}`, { role: "cell" }));
  cells[0].append(h("span.pill", ""));
  const element = h("div.row", { role: "row" }, cells);
  element.cells = cells;
  element.link = h("a");
  cells[1].append(element.link);
  element.pill = cells[0].firstElementChild;
  return element;
}

/** Show a chat in its row; what is shown already stays as it is. */
function update(element, chat, status) {
  if (element.chat !== chat || element.status !== status) {
    Object.assign(element, { chat, status });
    const { cells, pill } = element;
    setText(pill, label(chat.state));
    pill.className = `pill ${tone(chat.state)}`;
    setText(element.link, nameOf(chat));
    setText(cells[2], ownerOf(chat));
    setText(cells[3], plain(chat.details?.template_name ?? "") || "–");
    const held = heldUp(chat, status);
    setText(cells[4], held);
    cells[4].title = held;
    cells[1].title = `${nameOf(chat)} · chat ${chat.chat_id}`;
    cells[2].title = ownerOf(chat);
    element.classList.toggle("alert", needsAttention(chat, status));
  }
  setText(element.cells[5], chat.since ? age(clock.now() - chat.since) : "–");
}
