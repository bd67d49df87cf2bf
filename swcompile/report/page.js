"use strict";
// Pointing, choosing, zooming and filtering. Texts go in by textContent alone: no name can become an element.
const data = JSON.parse(document.getElementById("data").textContent);
const svg = document.querySelector("svg.network");
const picture = document.getElementById("picture");
const details = document.getElementById("details");
const tip = document.getElementById("tip");
const [NAME, STAGE, WORDS, WHERE, REFUSED, BEFORE, AFTER] = [0, 1, 2, 3, 4, 5, 6];
const KINDS = { before: "stay", kept: "stay", came: "came", gone: "gone" };

// The drawn links: which element is which link of the data, and of which kind.
const drawn = [];
for (const element of svg.querySelectorAll("g[id]")) {
  const [, kind, place] = /^network-(before|kept|came|gone)-(\d+)$/.exec(element.id) || [];
  if (!kind) continue;
  element.classList.add("arc");
  drawn.push({ element, kind, link: data.links[place] });
}
const byElement = new Map(drawn.map((item) => [item.element, item]));
const names = [...svg.querySelectorAll('g[id^="network-name-"]')];
const box = svg.viewBox.baseVal;
const panels = data.panels.network;

// What is said of a layer and of a link

function plural(count) { return count === 1 ? "1 channel" : `${count.toLocaleString("en")} channels`; }

function told([source, reader, kept, came, gone]) {
  const parts = [];
  if (!data.changed) parts.push(plural(kept));
  else {
    if (kept) parts.push(`${plural(kept)} read before and after`);
    if (came) parts.push(`${plural(came)} came in`);
    if (gone) parts.push(`${plural(gone)} no longer read`);
  }
  return `${data.stops[reader][NAME]} reads ${data.stops[source][NAME]}: ${parts.join(", ")}`;
}

function distance(stop) {
  if (stop[BEFORE] === null) return "";
  const change = data.changed && stop[AFTER] !== null ? `, ${stop[AFTER]} after` : "";
  return `Distance from the input: ${stop[BEFORE]}${change}.`;
}

function about(index) {
  const stop = data.stops[index];
  const reads = data.links.filter((link) => link[1] === index);
  const readers = data.links.filter((link) => link[0] === index && link[2] + link[3] > 0);
  const shown = reads.slice(0, 12).map((link) => told(link));
  if (reads.length > 12) shown.push(`and ${reads.length - 12} more`);
  return [
    `${stop[NAME]}: ${stop[WORDS]}${stop[WHERE] ? `, ${stop[WHERE]}` : ""}`,
    stop[REFUSED] ? `Left alone, or given less: ${stop[REFUSED]}` : "",
    `${distance(stop)} Read by ${readers.length} ${readers.length === 1 ? "layer" : "layers"}.`,
    ...shown,
  ].filter(Boolean).join("\n");
}

// The layer that is chosen

let chosen = -1;
const cursors = Object.values(panels).map((panel) => {
  const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  rect.setAttribute("class", "cursor");
  rect.setAttribute("y", panel.top);
  rect.setAttribute("height", panel.bottom - panel.top);
  rect.setAttribute("visibility", "hidden");
  svg.append(rect);
  return [rect, panel];
});

function choose(index) {
  if (index === chosen) return;
  chosen = index;
  svg.classList.toggle("focused", index >= 0);
  for (const { element, link } of drawn) element.classList.toggle("lit", index >= 0 && (link[0] === index || link[1] === index));
  for (const [rect, panel] of cursors) {
    const width = Math.max(panel.step, 4 / zoom);
    rect.setAttribute("x", panel.first + panel.step * index - width / 2);
    rect.setAttribute("width", width);
    rect.setAttribute("visibility", index >= 0 ? "visible" : "hidden");
  }
  showNames();
  details.textContent = index >= 0 ? about(index) : "No layer is chosen.";
}

function inView(index) {
  const panel = panels.before;
  const x = (panel.first + panel.step * index) / box.width * svg.clientWidth;
  if (x < picture.scrollLeft + 40 || x > picture.scrollLeft + picture.clientWidth - 40) picture.scrollLeft = x - picture.clientWidth / 2;
}

// Where the pointer is

function at(element, event) {
  const place = element.getBoundingClientRect();
  const view = element.viewBox.baseVal;
  return [(event.clientX - place.left) / place.width * view.width, (event.clientY - place.top) / place.height * view.height];
}

function stopAt(panel, x) {
  const index = Math.round((x - panel.first) / panel.step);
  return index >= 0 && index < data.stops.length ? index : -1;
}

function say(text, event) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const right = event.clientX + 14 + tip.offsetWidth < innerWidth;
  const below = event.clientY + 18 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(right ? event.clientX + 14 : event.clientX - 14 - tip.offsetWidth, 4)}px`;
  tip.style.top = `${Math.max(below ? event.clientY + 18 : event.clientY - 12 - tip.offsetHeight, 4)}px`;
}

svg.addEventListener("pointermove", (event) => {
  const item = byElement.get(event.target.closest("g[id]"));
  if (item) return say(told(item.link), event);
  const [x, y] = at(svg, event);
  const panel = Object.values(panels).find((one) => y >= one.top && y <= one.bottom + 90);
  const index = panel ? stopAt(panel, x) : -1;
  choose(index);
  return say(index >= 0 ? `${data.stops[index][NAME]}\n${data.stops[index][WORDS]}\n${data.stops[index][WHERE]}`.trim() : "", event);
});
svg.addEventListener("pointerleave", () => { tip.hidden = true; });

function matrixTip(element, event) {
  const [x, y] = at(element, event);
  for (const [name, panel] of Object.entries(data.panels.matrix)) {
    const source = stopAt(panel, x);
    const reader = Math.round((y - panel.top) / panel.step - 0.5);
    if (source < 0 || y < panel.top || y > panel.bottom) continue;
    const link = data.links.find((one) => one[0] === source && one[1] === reader);
    if (!link) return "";
    const before = name === "matrix-before" && data.changed;
    return before ? (link[2] + link[4] ? `${data.stops[reader][NAME]} reads ${data.stops[source][NAME]}: ${plural(link[2] + link[4])}` : "") : told(link);
  }
  return "";
}

function pathsTip(element, event) {
  const index = stopAt(data.panels.paths.paths, at(element, event)[0]);
  return index >= 0 ? `${data.stops[index][NAME]}\n${distance(data.stops[index])}` : "";
}

for (const element of document.querySelectorAll(".figure svg")) {
  element.addEventListener("pointermove", (event) => {
    const named = event.target.closest("g[id]");
    const text = named && data.tips[named.id];
    if (element.classList.contains("matrix")) return say(matrixTip(element, event), event);
    if (element.classList.contains("paths")) return say(pathsTip(element, event), event);
    return say(text, event);
  });
  element.addEventListener("pointerleave", () => { tip.hidden = true; });
}

// Zoom: the picture grows inside of its frame, which scrolls; names stay as small as they are, and more of them fit

let zoom = 1;
let every = 1;

function setZoom(wanted) {
  const middle = (picture.scrollLeft + picture.clientWidth / 2) / svg.clientWidth;
  zoom = Math.min(Math.max(wanted, 1), 16);
  document.documentElement.style.setProperty("--zoom", zoom);
  document.getElementById("zoom").textContent = `${Math.round(zoom * 100)}%`;
  picture.scrollLeft = middle * svg.clientWidth - picture.clientWidth / 2;
  every = Math.ceil(8 / (panels.before.step * zoom));
  showNames();
  inMiddle();
}

// As many names as fit, and that of the chosen layer instead of its neighbours'.
function showNames() {
  names.forEach((element, place) => {
    const near = chosen >= 0 && Math.abs(place - chosen) < every;
    element.classList.toggle("fine", place !== chosen && (near || place % every !== 0));
  });
}

// The lower panel is the one to look at: it stays in the middle, however tall the picture has become.
function inMiddle() {
  const panel = panels.after || panels.before;
  picture.scrollTop = (panel.top + panel.bottom) / 2 / box.height * svg.clientHeight - picture.clientHeight / 2;
}

const ZOOMS = { in: () => setZoom(zoom * 1.5), out: () => setZoom(zoom / 1.5), all: () => setZoom(1) };
document.getElementById("tools").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-zoom]");
  if (button) ZOOMS[button.dataset.zoom]();
});
picture.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom(zoom * (event.deltaY < 0 ? 1.2 : 1 / 1.2));
}, { passive: false });

// Keys

function toTable() {
  const row = document.getElementById(`layer-${chosen}`);
  if (!row) return;
  document.querySelectorAll("tr.here").forEach((other) => other.classList.remove("here"));
  row.hidden = false;
  row.classList.add("here");
  row.scrollIntoView({ block: "center" });
  row.closest(".scroll").focus({ preventScroll: true });
}

const last = data.stops.length - 1;
const KEYS = {
  ArrowRight: () => choose(Math.min(chosen + 1, last)),
  ArrowLeft: () => choose(Math.max(chosen - 1, 0)),
  Home: () => choose(0),
  End: () => choose(last),
  "+": ZOOMS.in,
  "=": ZOOMS.in,
  "-": ZOOMS.out,
  0: ZOOMS.all,
  Enter: toTable,
  Escape: () => choose(-1),
};
picture.addEventListener("keydown", (event) => {
  const act = event.ctrlKey || event.metaKey || event.altKey ? undefined : KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
  if (chosen >= 0 && event.key !== "Enter") inView(chosen);
});

// Filters

document.getElementById("tools").addEventListener("change", () => {
  const on = (name) => new Set([...document.querySelectorAll(`#tools input[name="${name}"]:checked`)].map((input) => input.value));
  const [kinds, stages] = [on("kind"), on("stage")];
  for (const { element, kind, link } of drawn) {
    element.classList.toggle("off", !kinds.has(KINDS[kind]) || !stages.has(String(data.stops[link[1]][STAGE])));
  }
});
document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());

const rows = [...document.querySelectorAll("#rows tbody tr")];
const texts = rows.map((row) => row.textContent.toLowerCase());
document.getElementById("search").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  rows.forEach((row, place) => {
    row.hidden = !words.every((word) => texts[place].includes(word));
    count += !row.hidden;
  });
  document.getElementById("found").textContent = words.length ? `${count} of ${rows.length}` : "";
});

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement.style;
  const dark = root.colorScheme ? root.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.colorScheme = dark ? "light" : "dark";
});

setZoom(1);
