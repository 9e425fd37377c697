// Elements, times and names. Texts of others are only ever set as text, never as HTML.

/** Make an element: h("button.quiet", {onclick, "aria-label": "Close"}, "Close"). Children that are null are left out. */
export function h(tag, ...rest) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  if (rest.length && isProperties(rest[0])) setAll(element, rest.shift());
  element.append(...rest.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function isProperties(value) {
  return value !== null && typeof value === "object" && !(value instanceof Node) && !Array.isArray(value);
}

function setAll(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (["value", "checked", "disabled", "hidden", "tabIndex", "htmlFor"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
}

/** Set an element's text if it differs: an equal text costs no layout. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Replace all children. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
}

const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** Return a text without characters that are invisible or change the direction of others. */
export function plain(text) {
  return String(text ?? "").replace(/\u001b\[[0-9;?]*[ -/]*[@-~]/g, "").replace(CONTROLS, "");
}

/** Return a text of workspaced as children of an element: what stands between backquotes is code. */
export function marked(text) {
  return plain(text).split("`").map((piece, at) => (at % 2 ? h("code", piece) : piece));
}

/** Return a duration as people say it: 4 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. */
export function duration(seconds) {
  const total = Math.max(0, Math.floor(seconds));
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min ${String(total % 60).padStart(2, "0")} s`;
  if (total < 86400) return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
  return `${Math.floor(total / 86400)} d ${Math.floor((total % 86400) / 3600)} h`;
}

/** Return how long ago a moment was, in one unit: 12 s, 5 min, 3 h, 2 d. */
export function age(milliseconds) {
  const total = Math.max(0, Math.floor(milliseconds / 1000));
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min`;
  if (total < 86400) return `${Math.floor(total / 3600)} h`;
  return `${Math.floor(total / 86400)} d`;
}

/** Return the local time of a moment: the time of today, the date before it of other days. */
export function localTime(text) {
  const at = new Date(text);
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return at.toDateString() === new Date().toDateString() ? time : `${at.toLocaleDateString()} ${time}`;
}

/** A time element with the full moment as its title. */
export function timeOf(text) {
  return text ? h("time", { datetime: text, title: new Date(text).toString() }, localTime(text)) : h("span", "–");
}

/** The difference between the server's clock and this one, in milliseconds, from answers' Date header. */
export const clock = { skew: 0, now: () => Date.now() + clock.skew };

/** Show a short message that goes away by itself; an error stays longer. */
export function toast(text, kind = "note") {
  const box = h(`p.toast.${kind}`, text, h("button.close", { "aria-label": "Dismiss", onclick: () => box.remove() }, "×"));
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), kind === "error" ? 12000 : 4000);
}

/** Call `draw` once before the next frame, however often it is asked for. */
export function onFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/** Return a text without its first bytes in UTF-8. */
export function withoutBytes(text, count) {
  return new TextDecoder().decode(new TextEncoder().encode(text).subarray(count));
}

/** Use the colours of a theme: "light", "dark", or "system". */
export function applyTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}
