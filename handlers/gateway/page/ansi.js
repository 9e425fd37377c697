// Terminal output as styled text: colours become classes, everything else that a terminal would obey is dropped.

const NAMES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
// CSI sequences, OSC and other strings (hyperlinks and titles among them), two-character escapes.
const ESCAPE =
  /\u001b\[([0-9;:?<=>]*)[ -/]*([@-~])|\u001b[\]PX^_][^\u0007\u001b\u009c]*(?:\u0007|\u001b\\|\u009c|$)|\u001b[ -/]*[0-~]?|[\u0080-\u009f]/g;
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** Return what a line shows after its carriage returns and erased parts: the last state of a progress bar. */
export function lastFrame(line) {
  if (!/[\r\u0008]|\u001b\[[012]?K/.test(line)) return line;
  const frames = line.split(/\r|\u001b\[[12]K/).filter((frame) => frame.replace(ESCAPE, "").trim() !== "");
  return frames.length ? frames[frames.length - 1] : "";
}

/** Return the pieces of a line, `[text, classes]`, and change `style` to what holds after it. */
export function pieces(line, style) {
  const found = [];
  const add = (text) => {
    const shown = text.replace(UNSEEN, "");
    if (shown) found.push([shown, classesOf(style)]);
  };
  let from = 0;
  for (const match of line.matchAll(ESCAPE)) {
    add(line.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[2] === "m") select(style, match[1]);
  }
  add(line.slice(from));
  return found;
}

/** Return the text of a line as it is shown. */
export function textOf(line) {
  return line.replace(ESCAPE, "").replace(UNSEEN, "");
}

/** Change a style by the parameters of a sequence that selects colours (SGR). */
export function select(style, parameters) {
  const codes = (parameters || "0").split(/[;:]/).map((code) => Number(code || 0));
  for (let at = 0; at < codes.length; at++) {
    const code = codes[at];
    if (code === 0) for (const key of Object.keys(style)) delete style[key];
    else if (code === 1) style.bold = true;
    else if (code === 2) style.dim = true;
    else if (code === 3) style.italic = true;
    else if (code === 4) style.underline = true;
    else if (code === 7) style.reverse = true;
    else if (code === 22) {
      delete style.bold;
      delete style.dim;
    } else if (code === 23) delete style.italic;
    else if (code === 24) delete style.underline;
    else if (code === 27) delete style.reverse;
    else if (code >= 30 && code <= 37) style.fg = NAMES[code - 30];
    else if (code === 39) delete style.fg;
    else if (code >= 40 && code <= 47) style.bg = NAMES[code - 40];
    else if (code === 49) delete style.bg;
    else if (code >= 90 && code <= 97) style.fg = NAMES[code - 90];
    else if (code >= 100 && code <= 107) style.bg = NAMES[code - 100];
    else if (code === 38 || code === 48) {
      const key = code === 38 ? "fg" : "bg";
      const colour = codes[at + 1] === 5 ? ofPalette(codes[at + 2]) : codes[at + 1] === 2 ? ofRgb(codes.slice(at + 2, at + 5)) : null;
      if (colour) style[key] = colour;
      at += codes[at + 1] === 5 ? 2 : codes[at + 1] === 2 ? 4 : 0;
    }
  }
}

/** The nearest of the eight colours, so that text stays readable in both themes. */
function ofRgb([red, green, blue]) {
  const most = Math.max(red, green, blue);
  const bit = (value) => (value > most / 2 && value > 60 ? 1 : 0);
  return NAMES[bit(red) + 2 * bit(green) + 4 * bit(blue)];
}

function ofPalette(code) {
  if (!(code >= 0 && code <= 255)) return null;
  if (code < 16) return NAMES[code % 8];
  if (code >= 232) return code < 244 ? "black" : "white";
  const cube = code - 16;
  return ofRgb([Math.floor(cube / 36), Math.floor(cube / 6) % 6, cube % 6].map((step) => step * 51));
}

/** Return the classes of a style. */
export function classesOf(style) {
  const classes = [];
  for (const key of ["bold", "dim", "italic", "underline", "reverse"]) if (style[key]) classes.push(`a-${key}`);
  if (style.fg) classes.push(`f-${style.fg}`);
  if (style.bg) classes.push(`b-${style.bg}`);
  return classes.join(" ");
}
