// What operators look at: what is wrong, and where.
import { h } from "./dom.js";

export class OperatorView {
  constructor(app) {
    this.app = app;
  }

  mount() {
    return h("section.operator", h("h1", "Operations"), h("p.muted", "Nothing to show yet."));
  }
}
