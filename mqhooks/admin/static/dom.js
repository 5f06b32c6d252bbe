// Making elements and words. Whatever comes from outside becomes text here, never markup.

export const byId = (id) => document.getElementById(id);

/** Make an element of its name, its attributes (`on…` is a listener) and what it holds; strings become text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Have as many elements in a list as there are items, made by `one`; show each item by `show(element, item)`. */
export function fit(list, items, one, show) {
  while (list.childElementCount > items.length) list.lastElementChild.remove();
  while (list.childElementCount < items.length) list.append(one());
  items.forEach((item, index) => show(list.children[index], item));
}

/** Write a text, unless it stands there already. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Control characters, and those that turn or hide what follows them.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** Show what a text from outside would hide, but for the characters `kept`. */
export function visible(text, most = 300, kept = "") {
  const cut = text.length > most ? `${text.slice(0, most)}…` : text;
  return cut.replace(UNSEEN, (character) => (kept.includes(character) ? character : `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`));
}

export const lines = (text, most) => visible(text.replace(/\r\n?/g, "\n"), most, "\n\t");

/** What an endpoint said with its last error, in a line; nothing when that was no answer. */
export function said({ last_error: error, last_answer: answer }) {
  const body = answer && error && answer.at === error.at ? answer.body.replace(/\s+/g, " ").trim() : "";
  return body && ` It said: “${visible(body, 200)}”.`;
}

const COUNT = new Intl.NumberFormat("en");
const TENTHS = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const TIME = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

export const count = (number) => COUNT.format(number);
export const rate = (number) => (number >= 100 || number === 0 ? COUNT.format(Math.round(number)) : TENTHS.format(number));
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function bytes(number) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return unit === 0 ? plural(number, "byte") : `${TENTHS.format(number)} ${units[unit]}`;
}

export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return hours % 24 ? `${Math.floor(hours / 24)} d ${hours % 24} h` : `${hours / 24} d`;
}

/** A time of day, with the day unless it is that of `now`. */
export function clock(seconds, now = seconds) {
  const [date, today] = [new Date(seconds * 1000), new Date(now * 1000)];
  const time = TIME.format(date);
  return date.toDateString() === today.toDateString() ? time : `${DAY.format(date)} ${time}`;
}
