// What a terminal sends for keys and pasted text.

const LETTERS = { ArrowUp: "A", ArrowDown: "B", ArrowRight: "C", ArrowLeft: "D", End: "F", Home: "H", F1: "P", F2: "Q", F3: "R", F4: "S" };
const NUMBERS = { Insert: 2, Delete: 3, PageUp: 5, PageDown: 6, F5: 15, F6: 17, F7: 18, F8: 19, F9: 20, F10: 21, F11: 23, F12: 24 };
const PLAIN = { Enter: "\r", Tab: "\t", Escape: "\u001b", Backspace: "\u007f" };

/** Return what a key sends; null if it is a character that the browser types, or no key for the terminal. */
export function encoded(event, applicationKeys) {
  const { key, shiftKey, altKey, ctrlKey } = event;
  const modifiers = 1 + (shiftKey ? 1 : 0) + (altKey ? 2 : 0) + (ctrlKey ? 4 : 0);
  if (key in LETTERS) {
    if (modifiers > 1) return `\u001b[1;${modifiers}${LETTERS[key]}`;
    return applicationKeys || "PQRS".includes(LETTERS[key]) ? `\u001bO${LETTERS[key]}` : `\u001b[${LETTERS[key]}`;
  }
  if (key in NUMBERS) return `\u001b[${NUMBERS[key]}${modifiers > 1 ? `;${modifiers}` : ""}~`;
  if (key === "Tab" && shiftKey) return "\u001b[Z";
  if (key in PLAIN) return (altKey ? "\u001b" : "") + (key === "Backspace" && ctrlKey ? "\u0008" : PLAIN[key]);
  if (key.length !== 1 || event.getModifierState?.("AltGraph")) return null;
  if (ctrlKey) {
    const control = controlOf(key);
    return control === null ? null : (altKey ? "\u001b" : "") + control;
  }
  // On Macs, Option types characters.
  return altKey && !navigator.platform.startsWith("Mac") ? `\u001b${key}` : null;
}

function controlOf(key) {
  const code = key.toUpperCase().charCodeAt(0);
  if (key === " ") return "\u0000";
  if (key === "/") return "\u001f";
  if (key === "?") return "\u007f";
  return code >= 64 && code < 96 ? String.fromCharCode(code & 31) : null;
}

/** Return what pasted text sends. Control characters are left out: a copied text must not press keys. */
export function pasted(text, bracketed) {
  // eslint-disable-next-line no-control-regex
  const typed = text.replace(/\r?\n/g, "\r").replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g, "");
  return bracketed ? `\u001b[200~${typed}\u001b[201~` : typed;
}
