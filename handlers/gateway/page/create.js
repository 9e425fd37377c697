// Creating a workspace: choose a template, fill in its parameters.
import { address, get, Problem } from "./api.js";
import { fill, h, plain, setText, toast } from "./dom.js";

export class CreateView {
  constructor(app, chatId) {
    this.app = app;
    this.chatId = app.session.role === "chat" ? app.session.chat_ids[0] : chatId || newId();
    this.existing = Boolean(chatId);
  }

  mount() {
    const { session } = this.app;
    this.list = h("div.templates", { role: "radiogroup", "aria-label": "Template" });
    this.form = h("form.create", { hidden: true, novalidate: true, onsubmit: (event) => this.submit(event) });
    this.fault = h("p.fault", { role: "alert" });
    this.organization = h("input", { id: "organization", value: session.organization_id ?? session.defaults.organization_id, spellcheck: "false" });
    this.organization.addEventListener("change", () => this.load());
    this.ownerName = h("input", { id: "owner-name", value: session.owner_name ?? session.defaults.owner_name });
    this.ownerId = h("input", { id: "owner-id", value: session.owner_id ?? session.defaults.owner_id, spellcheck: "false" });
    const view = h(
      "section.createview",
      h("a.back", { href: "#/" }, "← Chats"),
      h("h1", "Create a workspace"),
      this.app.isOperator
        ? h(
            "details.for",
            h("summary", "For whom: owner and organization"),
            h("div.grid", labelled("Owner's name", this.ownerName), labelled("Owner's id", this.ownerId), labelled("Organization", this.organization)),
          )
        : null,
      this.list,
      this.fault,
      this.form,
    );
    if (this.existing) this.owner();
    this.load();
    return view;
  }

  /** A chat that has asked before keeps its owner. */
  async owner() {
    const { details } = await get(`/v1/chats/${this.chatId}?details=true`);
    if (!details?.owner_id) return;
    this.ownerId.value = details.owner_id;
    this.ownerName.value = details.owner_name ?? this.ownerName.value;
    if (details.organization_id && details.organization_id !== this.organization.value) {
      this.organization.value = details.organization_id;
      this.load();
    }
  }

  async load() {
    const organization_id = this.organization.value.trim();
    const templates = [];
    try {
      for (let page = 1; ; page++) {
        const found = await get(address("/v1/templates", { organization_id, page }));
        templates.push(...found.templates);
        if (page >= found.total_pages) break;
      }
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      return setText(this.fault, problem.message);
    }
    setText(this.fault, "");
    if (!templates.length) {
      return fill(this.list, noTemplates());
    }
    fill(
      this.list,
      templates.map((template) =>
        h(
          "label.template",
          h("input", { type: "radio", name: "template", value: template.id, onchange: () => this.choose(template.id) }),
          h("span.templatename", plain(template.display_name || template.name), template.display_name ? h("span.muted", ` ${plain(template.name)}`) : null),
          h("span.muted", plain(template.description ?? "")),
        ),
      ),
    );
    if (templates.length === 1) {
      this.list.querySelector("input").checked = true;
      this.choose(templates[0].id);
    }
  }

  async choose(id) {
    try {
      this.template = await get(address(`/v1/templates/${id}`, { organization_id: this.organization.value.trim() }));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      return setText(this.fault, problem.message);
    }
    const { parameters, presets = [] } = this.template;
    this.fields = new Map();
    this.name = h("input", { id: "p-name", placeholder: "made up if left empty", maxlength: "32", spellcheck: "false" });
    this.preset = h("select", { id: "preset", onchange: () => this.usePreset() }, h("option", { value: "" }, "None"), presets.map((preset) => h("option", { value: preset.id }, plain(preset.name))));
    this.preset.value = presets.find((preset) => preset.default)?.id ?? "";
    this.faults = new Map();
    fill(
      this.form,
      this.field("name", "Name", this.name, "1 to 32 letters, digits and single hyphens"),
      presets.length ? labelled("Preset", this.preset) : null,
      parameters.map((parameter) => this.parameter(parameter)),
      h("div.buttons", (this.button = h("button.primary", { type: "submit" }, "Create"))),
    );
    this.form.hidden = false;
    this.usePreset();
  }

  parameter(parameter) {
    const id = `p-${parameter.name}`;
    let input;
    if (parameter.options?.length) {
      const options = parameter.options.map((option) => h("option", { value: option.value }, plain(option.name)));
      const blank = parameter.default === undefined ? [h("option", { value: "" }, "Choose…")] : [];
      input = h("select", { id }, blank, options);
    } else if (parameter.type === "bool") {
      input = h("select", { id }, parameter.default === undefined ? h("option", { value: "" }, "Choose…") : null, h("option", { value: "true" }, "Yes"), h("option", { value: "false" }, "No"));
    } else {
      const type = parameter.sensitive ? "password" : "text";
      input = h("input", { id, type, inputmode: parameter.type === "number" ? "decimal" : null, autocomplete: "off", spellcheck: "false" });
    }
    if (parameter.required) input.setAttribute("aria-required", "true");
    input.dataset.default = parameter.sensitive ? "" : (parameter.default ?? "");
    input.addEventListener("input", () => (input.dataset.touched = "true"));
    this.fields.set(parameter.name, input);
    const bounds = [
      parameter.validation_min !== undefined ? `at least ${parameter.validation_min}` : "",
      parameter.validation_max !== undefined ? `at most ${parameter.validation_max}` : "",
      parameter.type === "list(string)" ? 'a list such as ["a", "b"]' : "",
      parameter.mutable ? "" : "can't be changed later",
      parameter.sensitive && parameter.default !== undefined ? "left empty: the template's value" : "",
    ].filter(Boolean);
    const help = [plain(parameter.description ?? ""), bounds.join("; ")].filter(Boolean).join(" · ");
    return this.field(parameter.name, plain(parameter.display_name || parameter.name), input, help, parameter.required);
  }

  field(name, title, input, help, required) {
    const fault = h("p.fault", { id: `fault-${name}` });
    this.faults.set(name, fault);
    input.setAttribute("aria-describedby", `help-${name} fault-${name}`);
    return h("div.field", h("label", { for: input.id }, title, required ? h("span.required", " required") : null), input, h("p.help", { id: `help-${name}` }, help), fault);
  }

  usePreset() {
    const preset = this.template.presets?.find((one) => one.id === this.preset.value);
    const values = new Map((preset?.parameters ?? []).map(({ name, value }) => [name, value]));
    for (const [name, input] of this.fields) {
      if (input.dataset.touched) continue;
      input.value = values.get(name) ?? input.dataset.default;
    }
  }

  show(validations) {
    for (const fault of this.faults.values()) setText(fault, "");
    for (const input of [this.name, ...this.fields.values()]) input.removeAttribute("aria-invalid");
    let first = null;
    for (const { field, detail } of validations) {
      const fault = this.faults.get(field);
      const input = field === "name" ? this.name : this.fields.get(field);
      if (!fault || !input) {
        setText(this.fault, plain(`${field}: ${detail}`));
        continue;
      }
      setText(fault, plain(detail));
      input.setAttribute("aria-invalid", "true");
      first ??= input;
    }
    first?.focus();
  }

  async submit(event) {
    event.preventDefault();
    this.show([]);
    setText(this.fault, "");
    this.button.disabled = true;
    const parameters = {};
    for (const [name, input] of this.fields) if (input.value !== "" && (input.dataset.touched || input.value !== input.dataset.default)) parameters[name] = input.value;
    const args = { template_id: this.template.template.id, parameters, name: this.name.value.trim() || undefined, preset_id: this.preset.value || undefined };
    const owner = { organization_id: this.organization.value.trim(), owner_id: this.ownerId.value.trim(), owner_name: this.ownerName.value.trim() };
    try {
      const answer = await this.app.call(this.chatId, "create_workspace", args, owner, 0.4);
      if (answer.status === 200) {
        const { is_error, result } = answer.body;
        if (result.validations) return this.show(result.validations);
        if (is_error) return setText(this.fault, plain(result.error));
        if (result.created === false) toast(plain(result.message));
      }
      location.hash = `#/chat/${this.chatId}`;
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      setText(this.fault, problem.message);
    } finally {
      this.button.disabled = false;
    }
  }
}

const SMALLEST = 'name = "hello"\npool = "local"\n\n[build]\nstart = "echo hello"\n\n[[agent]]\nname = "main"';

/** What a new user does first. */
function noTemplates() {
  return h(
    "div.first",
    h("p", "This organization has no template yet. A template is a folder with a file ", h("code", "template.toml"), ". These lines are enough to begin with:"),
    h("pre", { tabIndex: 0, "aria-label": "The smallest template.toml" }, SMALLEST),
    h("p", "Push the folder in a terminal, then reload this page: ", h("code", "workspaced template push DIR")),
  );
}

function labelled(title, input) {
  return h("div.field", h("label", { for: input.id }, title), input);
}

/** A random UUID; `crypto.randomUUID` exists in secure contexts only. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
