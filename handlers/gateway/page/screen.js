// A terminal emulator without a document: text with control sequences in, lines of styled characters out.
//
// It understands what programs write for TERM=xterm-256color, except mouse reports. Titles, hyperlinks, the clipboard
// (OSC 52) and all other strings are skipped: nothing that a program writes can do more than change the characters here.
import { classesOf, select } from "./ansi.js";

const KEPT = 2000; // lines that have left the screen at the top and are kept
const LONGEST_STRING = 65536; // characters of a string after which its end is no longer waited for
const LONGEST_SEQUENCE = 256;
const LARGEST_COUNT = 9999;

/** What a terminal shows for the letters `…~ while the set of line drawing characters is selected. */
const LINES = "◆▒␉␌␍␊°±␤␋┘┐┌└┼⎺⎻─⎼⎽├┤┴┬│≤≥π≠£·";
const PRINTABLE = /[^\u0000-\u001f\u007f-\u009f]+/y;
const SIMPLE = /^[\u0020-\u007e\u00a0-\u00ac\u00ae-\u02ff]*$/; // one column each
const COMBINING = /^[\p{M}\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\u{1f3fb}-\u{1f3ff}\u{e0100}-\u{e01ef}]$/u;
/** Characters that change the direction of others, or are not there for readers. */
const HIDDEN = /[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/;
const WIDE =
  /^[\u1100-\u115f\u231a\u231b\u2329\u232a\u23e9-\u23ec\u25fd\u25fe\u2614\u2615\u26a1\u26aa\u26ab\u26bd\u26be\u26c4\u26ce\u26d4\u26ea\u26f5\u26fa\u26fd\u2705\u270a\u270b\u2728\u274c\u274e\u2753-\u2757\u2795-\u2797\u27b0\u2b1b\u2b1c\u2b50\u2b55\u2e80-\u303e\u3041-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f004}\u{1f0cf}\u{1f18e}\u{1f191}-\u{1f19a}\u{1f200}-\u{1f320}\u{1f32d}-\u{1f335}\u{1f337}-\u{1f37c}\u{1f37e}-\u{1f393}\u{1f3a0}-\u{1f3ca}\u{1f3e0}-\u{1f3f0}\u{1f3f4}\u{1f3f8}-\u{1f43e}\u{1f440}\u{1f442}-\u{1f4fc}\u{1f4ff}-\u{1f53d}\u{1f550}-\u{1f567}\u{1f595}\u{1f5a4}\u{1f5fb}-\u{1f64f}\u{1f680}-\u{1f6c5}\u{1f6d0}-\u{1f6d2}\u{1f6eb}-\u{1f6fc}\u{1f7e0}-\u{1f7eb}\u{1f900}-\u{1faff}\u{20000}-\u{3fffd}]$/u;

/** A line of the screen: a character and its classes for each column up to the last one that was written.
 *
 * The columns after those are spaces with the classes `blank`. The second column of a wide character is "". */
class Line {
  constructor(blank = "") {
    this.chars = [];
    this.styles = [];
    this.blank = blank;
    this.changed = true;
  }

  /** The text without the spaces at its end. */
  get text() {
    return this.chars.join("").trimEnd();
  }

  /** Write out the columns before one that is going to be written. */
  reach(col) {
    while (this.chars.length < col) {
      this.chars.push(" ");
      this.styles.push(this.blank);
    }
  }

  put(col, char, style) {
    this.reach(col);
    this.chars[col] = char;
    this.styles[col] = style;
    this.changed = true;
  }

  erase(from, to, style) {
    this.part(from);
    this.part(to);
    for (let col = from; col < to; col++) this.put(col, " ", style);
  }

  /** Replace a wide character by spaces if its second half begins at a column that is going to be written, or to stay. */
  part(col) {
    if (this.chars[col] !== "") return;
    this.chars[col] = this.chars[col - 1] = " ";
    this.changed = true;
  }

  /** Erase all of it. */
  clear(style) {
    this.chars.length = this.styles.length = 0;
    this.blank = style;
    this.changed = true;
  }

  /** Let the characters from a column on move by `count` columns; a negative count moves them to the left. */
  move(col, count, cols, style) {
    this.reach(cols);
    this.part(col);
    const removed = count < 0 ? -count : 0;
    const added = count > 0 ? count : 0;
    for (const [cells, blank] of [[this.chars, " "], [this.styles, style]]) {
      cells.splice(col, removed, ...new Array(added).fill(blank));
      while (cells.length < cols) cells.push(blank);
      cells.length = cols;
    }
    if (this.chars[col + added] === "") this.put(col + added, " ", style);
    this.changed = true;
  }
}

export class Screen {
  /** `reply(text)` is called with what the terminal answers to a program that asks for its position or its kind. */
  constructor(cols, rows, reply = () => {}) {
    this.cols = cols;
    this.rows = rows;
    this.reply = reply;
    this.left = []; // lines that left the screen at the top and were not taken yet
    this.state = this.ground;
    this.reset();
  }

  reset() {
    this.main = this.empty();
    this.lines = this.main;
    this.style = {};
    this.classes = "";
    this.blank = "";
    this.row = 0;
    this.col = 0;
    this.top = 0;
    this.bottom = this.rows - 1;
    this.wraps = true; // whether text goes on in the next line
    this.full = false; // whether the last column was written, so that the next character wraps
    this.inserts = false;
    this.fromMargin = false; // whether positions count from the top margin
    this.shown = true; // whether the cursor is visible
    this.applicationKeys = false;
    this.bracketedPaste = false;
    this.sets = [false, false]; // for each of two character sets: whether it is that of lines
    this.set = 0;
    this.saved = new Map(); // of each of the two screens, what `save` kept
    this.stops = new Set(Array.from({ length: 600 }, (_, at) => at * 8));
    this.last = " ";
  }

  empty() {
    return Array.from({ length: this.rows }, () => new Line());
  }

  get isAlternate() {
    return this.lines !== this.main;
  }

  /** Return the lines that left the screen since the last call. */
  takeLeft() {
    return this.left.splice(0);
  }

  resize(cols, rows) {
    if (cols === this.cols && rows === this.rows) return;
    for (const lines of new Set([this.main, this.lines])) {
      const cursor = lines === this.lines ? this : (this.saved.get(false) ?? { row: 0 });
      for (const line of lines) line.changed = true;
      while (lines.length > rows) {
        if (cursor.row < lines.length - 1 && lines.at(-1).text === "") lines.pop();
        else {
          const line = lines.shift();
          if (lines === this.main) this.leave(line);
          cursor.row = Math.max(0, cursor.row - 1);
        }
      }
      while (lines.length < rows) lines.push(new Line());
    }
    this.cols = cols;
    this.rows = rows;
    this.top = 0;
    this.bottom = rows - 1;
    this.moveTo(this.row, this.col);
  }

  // -- reading -----------------------------------------------------------------------------------

  write(text) {
    for (let at = 0; at < text.length; ) {
      if (this.state === this.ground) {
        PRINTABLE.lastIndex = at;
        const found = PRINTABLE.exec(text);
        if (found) {
          this.printAll(found[0]);
          at = PRINTABLE.lastIndex;
          continue;
        }
      }
      this.read(text[at++]);
    }
  }

  /** Read a character that is not simply printed. */
  read(char) {
    const code = char.charCodeAt(0);
    if (code === 0x1b) return this.begin(); // also ends a string
    if (code === 0x18 || code === 0x1a) return void (this.state = this.ground); // cancel a sequence
    if (code < 0x20 && this.state !== this.string) return this.control(code);
    if (code >= 0x7f && code <= 0x9f) return; // there are no control characters of 8 bits in UTF-8
    this.state(char);
  }

  ground() {}

  begin() {
    this.state = this.escape;
    this.collected = "";
  }

  control(code) {
    if (code === 0x08) this.moveTo(this.row, this.col - 1);
    else if (code === 0x09) this.tab(1);
    else if (code >= 0x0a && code <= 0x0c) this.feed();
    else if (code === 0x0d) this.moveTo(this.row, 0);
    else if (code === 0x0e) this.set = 1;
    else if (code === 0x0f) this.set = 0;
  }

  escape(char) {
    this.state = this.ground;
    if (char === "[") this.state = this.sequence;
    else if ("]PX^_".includes(char)) {
      this.state = this.string;
      this.length = 0;
    } else if ("()".includes(char)) {
      this.target = char === ")" ? 1 : 0;
      this.state = this.charset;
    } else if (" #%*+-./".includes(char)) this.state = this.skipOne;
    else if (char === "7") this.save();
    else if (char === "8") this.restore();
    else if (char === "D") this.feed();
    else if (char === "E") this.nextLine();
    else if (char === "M") this.reverseFeed();
    else if (char === "H") this.stops.add(this.col);
    else if (char === "c") this.reset();
  }

  charset(char) {
    this.sets[this.target] = char === "0";
    this.state = this.ground;
  }

  skipOne() {
    this.state = this.ground;
  }

  /** Skip a string, to its end or a limit: output goes on after one that has no end. */
  string(char) {
    this.length += 1;
    if (char === "\u0007" || this.length > LONGEST_STRING) this.state = this.ground;
  }

  sequence(char) {
    if (char < "@") {
      this.collected += char;
      if (this.collected.length > LONGEST_SEQUENCE) this.state = this.ground;
      return;
    }
    this.state = this.ground;
    const [, kind, parameters, between] = /^([<=>?]?)([0-9;:]*)([ -/]*)/.exec(this.collected);
    if (char === "m" && !kind && !between) return this.restyle(parameters);
    const numbers = parameters.split(/[;:]/).map((number) => Math.min(Number(number) || 0, LARGEST_COUNT));
    if (kind === "?" && (char === "h" || char === "l")) return numbers.forEach((mode) => this.setMode(mode, char === "h"));
    if (kind === ">" && char === "c") return this.reply("\u001b[>0;0;0c");
    if (between === "!" && char === "p") return this.reset();
    if (kind === "" && between === "") this.act(char, numbers);
  }

  act(char, [first, second = 0, ...more]) {
    const count = first || 1;
    if (char === "A") this.moveTo(this.above(count), this.col);
    else if (char === "B" || char === "e") this.moveTo(this.below(count), this.col);
    else if (char === "C" || char === "a") this.moveTo(this.row, this.col + count);
    else if (char === "D") this.moveTo(this.row, this.col - count);
    else if (char === "E") this.moveTo(this.below(count), 0);
    else if (char === "F") this.moveTo(this.above(count), 0);
    else if (char === "G" || char === "`") this.moveTo(this.row, count - 1);
    else if (char === "H" || char === "f") this.moveTo(count - 1 + (this.fromMargin ? this.top : 0), (second || 1) - 1);
    else if (char === "d") this.moveTo(count - 1 + (this.fromMargin ? this.top : 0), this.col);
    else if (char === "I") this.tab(count);
    else if (char === "Z") this.tab(-count);
    else if (char === "J") this.eraseScreen(first);
    else if (char === "K") this.line.erase(first ? 0 : this.col, first === 1 ? this.col + 1 : this.cols, this.blank);
    else if (char === "L" && this.isInMargins) this.scroll(this.row, this.bottom, -count);
    else if (char === "M" && this.isInMargins) this.scroll(this.row, this.bottom, count);
    else if (char === "S") this.scroll(this.top, this.bottom, count);
    else if (char === "T") this.scroll(this.top, this.bottom, -count);
    else if (char === "P") this.line.move(this.col, -Math.min(count, this.cols - this.col), this.cols, this.blank);
    else if (char === "@") this.line.move(this.col, Math.min(count, this.cols - this.col), this.cols, this.blank);
    else if (char === "X") this.line.erase(this.col, Math.min(this.col + count, this.cols), this.blank);
    else if (char === "b") for (let left = Math.min(count, this.cols * this.rows); left; left--) this.print(this.last);
    else if (char === "g" && first === 3) this.stops.clear();
    else if (char === "g") this.stops.delete(this.col);
    else if (char === "h" || char === "l") this.inserts = [first, second, ...more].includes(4) ? char === "h" : this.inserts;
    else if (char === "r") this.setMargins(first, second);
    else if (char === "s") this.save();
    else if (char === "u") this.restore();
    else if (char === "n" && first === 5) this.reply("\u001b[0n");
    else if (char === "n" && first === 6) this.reply(`\u001b[${this.row + 1};${this.col + 1}R`);
    else if (char === "c") this.reply("\u001b[?1;2c");
  }

  /** The row that is `count` rows above, not beyond a margin. */
  above(count) {
    return Math.max(this.row - count, this.row >= this.top ? this.top : 0);
  }

  below(count) {
    return Math.min(this.row + count, this.row <= this.bottom ? this.bottom : this.rows);
  }

  setMode(mode, on) {
    if (mode === 1) this.applicationKeys = on;
    else if (mode === 6) {
      this.fromMargin = on;
      this.moveTo(on ? this.top : 0, 0);
    } else if (mode === 7) this.wraps = on;
    else if (mode === 25) {
      this.shown = on;
      this.line.changed = true;
    } else if (mode === 2004) this.bracketedPaste = on;
    else if (mode === 1048 && on) this.save();
    else if (mode === 1048) this.restore();
    else if (mode === 47 || mode === 1047 || mode === 1049) this.setAlternate(on, mode === 1049);
  }

  setAlternate(on, saves) {
    if (on === this.isAlternate) return;
    if (on && saves) this.save();
    this.lines = on ? this.empty() : this.main;
    if (!on && saves) this.restore();
    this.moveTo(this.row, this.col);
  }

  // -- changing the screen -----------------------------------------------------------------------

  get line() {
    return this.lines[this.row];
  }

  get isInMargins() {
    return this.row >= this.top && this.row <= this.bottom;
  }

  restyle(parameters) {
    select(this.style, parameters);
    this.classes = classesOf(this.style);
    this.blank = this.style.bg ? `b-${this.style.bg}` : "";
  }

  printAll(text) {
    const simple = SIMPLE.test(text) && !this.inserts && !this.sets[this.set];
    if (!simple) {
      for (const char of text) this.print(char);
      return;
    }
    for (let at = 0; at < text.length; ) {
      if (this.full) this.print(text[at++]);
      const { line, col } = this;
      const end = Math.min(this.cols - 1, col + text.length - at); // the last column is left to `print`
      line.part(end);
      for (line.reach(col), line.part(col); this.col < end; this.col++, at++) {
        line.chars[this.col] = text[at];
        line.styles[this.col] = this.classes;
        line.changed = true;
      }
      if (at < text.length) this.print(text[at++]);
    }
    this.last = text.at(-1);
  }

  print(char) {
    if (char >= "\u0300" && (HIDDEN.test(char) || this.combine(char))) return;
    if (this.sets[this.set] && char >= "`" && char <= "~") char = LINES[char.charCodeAt(0) - 0x60];
    const width = char >= "\u1100" && WIDE.test(char) && this.cols > 1 ? 2 : 1;
    if (this.full || this.col + width > this.cols) {
      if (this.wraps) this.nextLine();
      else this.col = this.cols - width;
    }
    if (this.inserts) this.line.move(this.col, width, this.cols, this.blank);
    else this.line.erase(this.col, this.col + width, this.blank);
    this.line.put(this.col, char, this.classes);
    if (width === 2) this.line.put(this.col + 1, "", this.classes);
    this.last = char;
    this.full = this.col + width >= this.cols;
    this.col = Math.min(this.col + width, this.cols - 1);
  }

  /** Add a character without a width of its own to the one before it; return whether it is such a one. */
  combine(char) {
    if (!COMBINING.test(char)) return false;
    let col = this.full ? this.col : this.col - 1;
    if (col > 0 && this.line.chars[col] === "") col -= 1;
    if (this.line.chars[col] !== undefined && this.line.chars[col].length < 16) this.line.put(col, this.line.chars[col] + char, this.line.styles[col]);
    return true;
  }

  moveTo(row, col) {
    if (this.line) this.line.changed = true; // where the cursor was
    this.row = Math.max(0, Math.min(row, this.rows - 1));
    this.col = Math.max(0, Math.min(col, this.cols - 1));
    this.full = false;
    this.line.changed = true;
  }

  tab(count) {
    const step = Math.sign(count);
    let col = this.col;
    for (let left = Math.min(Math.abs(count), this.cols); left; left--) {
      do col += step;
      while (col > 0 && col < this.cols - 1 && !this.stops.has(col));
    }
    this.moveTo(this.row, col);
  }

  feed() {
    if (this.row === this.bottom) this.scroll(this.top, this.bottom, 1);
    else this.moveTo(this.row + 1, this.col);
    this.full = false;
  }

  nextLine() {
    this.moveTo(this.row, 0);
    this.feed();
  }

  reverseFeed() {
    if (this.row === this.top) this.scroll(this.top, this.bottom, -1);
    else this.moveTo(this.row - 1, this.col);
  }

  /** Move the lines between two rows up by `count`; down, if it is negative. */
  scroll(top, bottom, count) {
    const lines = this.lines;
    this.line.changed = true;
    for (let left = Math.min(Math.abs(count), bottom - top + 1); left; left--) {
      const whole = top === 0 && bottom === this.rows - 1 && count > 0; // what most output does
      const [gone] = whole ? [lines.shift()] : lines.splice(count > 0 ? top : bottom, 1);
      if (whole) lines.push(new Line(this.blank));
      else lines.splice(count > 0 ? bottom : top, 0, new Line(this.blank));
      if (count > 0 && top === 0 && !this.isAlternate) this.leave(gone);
    }
  }

  leave(line) {
    this.left.push(line);
    if (this.left.length > 2 * KEPT) this.left.splice(0, KEPT);
  }

  setMargins(first, second) {
    const top = Math.max(first, 1) - 1;
    const bottom = Math.min(second || this.rows, this.rows) - 1;
    if (top >= bottom) return;
    this.top = top;
    this.bottom = bottom;
    this.moveTo(this.fromMargin ? top : 0, 0);
  }

  eraseScreen(what) {
    if (what === 3) return; // lines that left the screen stay
    if (what !== 1) this.line.erase(what ? 0 : this.col, this.cols, this.blank);
    else this.line.erase(0, this.col + 1, this.blank);
    const [from, to] = what === 2 ? [0, this.rows] : what === 1 ? [0, this.row] : [this.row + 1, this.rows];
    for (let row = from; row < to; row++) this.lines[row].clear(this.blank);
  }

  save() {
    const { row, col, classes, blank, set } = this;
    this.saved.set(this.isAlternate, { row, col, classes, blank, set, sets: [...this.sets], style: { ...this.style } });
  }

  restore() {
    const { row = 0, col = 0, ...more } = this.saved.get(this.isAlternate) ?? {};
    Object.assign(this, more);
    this.sets = [...(more.sets ?? this.sets)];
    this.style = { ...(more.style ?? this.style) };
    this.moveTo(row, col);
  }
}

/** Return the pieces with equal classes, `[text, classes]`, of the first columns of a line. */
export function runs(line, cols, cursor = -1) {
  const found = [];
  const { chars, styles, blank } = line;
  let end = blank ? cols : Math.min(cols, chars.length);
  while (end > 0 && chars[end - 1] === " " && styles[end - 1] === "") end -= 1;
  end = Math.max(end, cursor + 1);
  for (let col = 0; col < end; col++) {
    const char = chars[col] ?? " ";
    if (char === "") continue;
    const wide = chars[col + 1] === "";
    const classes = `${styles[col] ?? blank}${wide ? " wide" : ""}${col === cursor ? " cursor" : ""}`.trim();
    const last = found.at(-1);
    if (last && last[1] === classes && !wide && col !== cursor) last[0] += char;
    else found.push([char, classes]);
  }
  return found;
}

export { KEPT };
