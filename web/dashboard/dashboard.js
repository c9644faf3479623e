// The administrator's dashboard: asks for /api/v1/state each second and shows it.
//
// What comes from participants (names, rooms, programs) is hostile: it only ever becomes text. Elements are kept and changed by
// key, so that focus, selection and what is folded out survive, and what did not change costs nothing.

const POLL_MS = 1_000;
const PATIENCE_MS = 5_000;
const MINUTE_MS = 60_000;
/** How long charts look back. */
const HISTORY_MS = 5 * MINUTE_MS;
/** Points further apart are not joined: nobody looked in between. */
const GAP_MS = 6_000;
/** Workers and the host are read at moments of their own: their rates are of so long. */
const SMOOTH_MS = 3_000;
const NOTICE_MS = 8_000;
/** With fewer days left, a certificate should long have been renewed. */
const CERTIFICATE_DAYS = 14;
const THEME = "postern.theme";
const TOKEN = "postern.token";

const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

/** Text without the marks that turn the direction of what stands around it: names come from strangers. */
const tame = (value) => (typeof value === "string" ? value.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "") : value);

/** An element with properties, text and children. */
function make(tag, { text, cls, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = tame(text);
  if (cls) element.className = cls;
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Sets the properties that differ. What was set is remembered: some, like textContent, are slow to read. */
function set(element, values) {
  element.given ??= {};
  for (const [key, value] of Object.entries(values)) {
    if (element.given[key] === value) continue;
    element.given[key] = value;
    element[key] = key === "textContent" || key === "title" ? tame(value) : value;
  }
  return element;
}

/** One child for each row, by its key: made once, changed afterwards, in the order of the rows. What stays is not moved. */
function keep(parent, rows, keyOf, create, change) {
  parent.known ??= new Map();
  const keys = new Set(rows.map(keyOf));
  for (const [key, child] of parent.known) {
    if (keys.has(key)) continue;
    child.remove();
    parent.known.delete(key);
  }
  let at = parent.firstElementChild;
  for (const row of rows) {
    let child = parent.known.get(keyOf(row));
    if (!child) parent.known.set(keyOf(row), (child = create(row)));
    change(child, row);
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
}

function scaled(value, base, units) {
  let at = 0;
  for (; value >= base && at < units.length - 1; at += 1) value /= base;
  return `${value >= 100 || at === 0 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
}

const bits = (value) => scaled(value, 1_000, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]);
const bytes = (value) => scaled(value, 1_024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const percent = (ratio, digits = 0) => `${(ratio * 100).toFixed(digits)} %`;
const count = new Intl.NumberFormat("en").format;
const perSecond = (value) => `${value === 0 || value >= 10 ? count(Math.round(value)) : value.toFixed(1)} /s`;
const ms = (value) => (value === null ? "–" : `${value < 10 ? Number(value.toFixed(1)) : Math.round(value)} ms`);
const plural = (n, one) => `${count(n)} ${n === 1 ? one : `${one}s`}`;
const plain = (name) => name.replaceAll("_", " ");
const byName = new Intl.Collator("en", { numeric: true }).compare;
const grade = (value, warn, bad) => (value >= bad ? "bad" : value >= warn ? "warn" : "");
const sum = (rows, of) => rows.reduce((all, row) => all + of(row), 0);

function clock(at) {
  const [then, now] = [new Date(at), new Date()];
  const time = then.toLocaleTimeString("en-GB");
  return then.toDateString() === now.toDateString() ? time : `${then.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
}

function span(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3_600)} h ${Math.floor((seconds % 3_600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} days`;
}

/** Points of the last minutes, oldest first: figures of a moment, and totals that grow by their names. */
let history = [];
let latest = null;

/** What every healthy call drops: browsers send twice to probe the network, and try the relay before they need it. */
const USUAL = new Set(["rtp_duplicate", "relay_head_start"]);

function remember(state) {
  const totals = new Map([["process", state.host.process_cpu_seconds]]);
  for (const w of state.workers) totals.set(`worker ${w.id}`, w.busy_seconds);
  for (const d of state.drops) totals.set(`drops ${d.reason}`, d.total);
  for (const r of state.refusals) totals.set(`refusals ${r.what} ${r.reason}`, r.total);
  for (const i of state.host.interfaces) totals.set(`${i.name} in`, i.received_bytes).set(`${i.name} out`, i.sent_bytes);
  totals.set("unusual", sum(state.drops.filter((d) => !USUAL.has(d.reason)), (d) => d.total));
  const point = { ...state.totals, at: state.server.now_ms, totals };
  // A server that was started anew counts from zero; a clock that was set back makes no line.
  if (latest?.server.started_at !== state.server.started_at || point.at < latest.server.now_ms) history = [];
  history = [...history.filter((h) => h.at < point.at && point.at - h.at <= HISTORY_MS), point];
  point.dropped = rate("unusual", SMOOTH_MS);
  point.busiest = history.length > 1 ? Math.max(0, ...state.workers.map((w) => load(w.id))) : null;
  latest = state;
}

/** How much a total grew up to a point, in how many seconds: since the point before, or over so long. */
function growth(name, overMs = 0, at = history.length - 1) {
  const end = history[at];
  let start = at;
  while (start > 0 && (start === at || end.at - history[start - 1].at <= overMs)) start -= 1;
  // What is not there yet is listed once it counts something.
  const by = (end.totals.get(name) ?? 0) - (history[start].totals.get(name) ?? 0);
  return { by: Math.max(0, by), seconds: (end.at - history[start].at) / 1_000 };
}

/** Growth a second; none at the first point. */
function rate(name, overMs, at) {
  const { by, seconds } = growth(name, overMs, at);
  return seconds > 0 ? by / seconds : null;
}

const load = (id, at) => rate(`worker ${id}`, SMOOTH_MS, at);
const points = (of) => history.map((h, at) => ({ at: h.at, value: of(h, at) })).filter((p) => p.value !== null);

/** In minutes, with the words for the beginning and the middle of it. */
const LOOKBACKS = [[0.5, "30 s ago", "15 s"], [1, "1 min ago", "30 s"], [2, "2 min ago", "1 min"], [5, "5 min ago", "2½ min"]];

/** What charts show: as much as there is. */
function lookback() {
  const known = history.at(-1).at - history[0].at;
  const [minutes, ago, half] = LOOKBACKS.find(([m]) => known <= m * MINUTE_MS) ?? LOOKBACKS.at(-1);
  return { wide: minutes * MINUTE_MS, ago, half };
}

/** A series as the paths of its line and of the area below. */
function trace(series, x, y, floor) {
  const runs = [];
  series.forEach((p, i) => (i && p.at - series[i - 1].at <= GAP_MS ? runs.at(-1).push(p) : runs.push([p])));
  const lines = runs.map((run) => run.map((p) => `${x(p.at).toFixed(1)} ${y(p.value).toFixed(1)}`).join("L"));
  const area = runs.map((run, i) => `M${x(run[0].at).toFixed(1)} ${floor}L${lines[i]}L${x(run.at(-1).at).toFixed(1)} ${floor}Z`);
  return { line: lines.map((line) => `M${line}`).join(""), area: area.join("") };
}

const SPARK = { width: 160, height: 32 };

function makeSpark() {
  const box = { viewBox: `0 0 ${SPARK.width} ${SPARK.height}`, preserveAspectRatio: "none", "aria-hidden": "true", class: "spark" };
  return svg("svg", box, svg("path", { class: "area" }), svg("path", { class: "line" }));
}

function drawSpark(element, series, max = 0) {
  const top = Math.max(max, ...series.map((p) => p.value)) || 1;
  const wide = lookback().wide;
  const x = (at) => SPARK.width * (1 - (history.at(-1).at - at) / wide);
  const { line, area } = trace(series, x, (value) => SPARK.height - 1.5 - (value / top) * (SPARK.height - 4), SPARK.height);
  element.firstChild.setAttribute("d", area);
  element.lastChild.setAttribute("d", line);
}

/** The least round number that is not below. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10].map((n) => n * power).find((n) => n >= value);
}

const TRAFFIC = [["in", "bits_in"], ["out", "bits_out"]];
/** Where the pointer is on the chart, as a share of its width. */
let pointedAt = null;

function drawTraffic() {
  const element = $("traffic");
  const [width, height, left, bottom, top] = [Math.max(element.clientWidth, 240), Math.max(element.clientHeight, 120), 76, 22, 8];
  const [back, floor] = [lookback(), height - bottom];
  const x = (at) => width - ((history.at(-1).at - at) / back.wide) * (width - left);
  const max = ceiling(Math.max(10_000, ...history.flatMap((h) => [h.bits_in, h.bits_out])));
  const y = (value) => floor - (value / max) * (floor - top);
  const parts = [...grid({ width, height, left, max, back, y })];
  for (const [cls, key] of TRAFFIC) {
    const { line, area } = trace(points((h) => h[key]), x, y, floor);
    parts.push(svg("path", { class: `area ${cls}`, d: area }), svg("path", { class: `line ${cls}`, d: line }));
  }
  // The point nearest to the pointer.
  const away = (h) => Math.abs(x(h.at) - (pointedAt ?? 1) * width);
  const shown = history.reduce((best, h) => (away(h) <= away(best) ? h : best));
  if (pointedAt !== null) {
    parts.push(svg("line", { class: "cursor", x1: x(shown.at), x2: x(shown.at), y1: top, y2: floor }));
    for (const [cls, key] of TRAFFIC) parts.push(svg("circle", { class: cls, cx: x(shown.at), cy: y(shown[key]), r: 3.5 }));
  }
  for (const [cls, key] of TRAFFIC) set($(`traffic-${cls}`), { textContent: bits(shown[key]) });
  set($("traffic-when"), { textContent: pointedAt === null ? "now" : clock(shown.at) });
  set(element, { ariaLabel: `Media, now: ${bits(latest.totals.bits_in)} from participants, ${bits(latest.totals.bits_out)} to participants` });
  element.setAttribute("viewBox", `0 0 ${width} ${height}`);
  element.replaceChildren(...parts);
}

function* grid({ width, height, left, max, back, y }) {
  for (const share of [0, 0.5, 1]) {
    const at = Math.round(y(max * share)) + 0.5;
    yield svg("line", { class: share ? "rule" : "rule floor", x1: left, x2: width, y1: at, y2: at });
    yield svg("text", { x: left - 10, y: at + 4, "text-anchor": "end" }, share ? bits(max * share).replace(".0 ", " ") : "0");
  }
  for (const [x, anchor, text] of [[left, "start", back.ago], [(left + width) / 2, "middle", back.half], [width, "end", "now"]]) {
    yield svg("text", { x, y: height - 4, "text-anchor": anchor }, text);
  }
}

const PHASES = {
  booting: ["starting", "warn", "The server is starting."],
  ready: ["ready", "good", ""],
  draining: ["draining", "warn", "The server drains: it opens no new rooms and ends with the last call."],
  stopping: ["stopping", "bad", "The server is stopping."],
};

function showTop({ server }) {
  const [phase, cls, note] = PHASES[server.phase] ?? [server.phase, "", ""];
  set($("phase"), { textContent: phase, className: `badge dot ${cls}`, hidden: false });
  set($("domain"), { textContent: server.domain, title: server.domain });
  const [now, expires] = [server.now_ms / 1_000, server.certificate_expires_at];
  const days = expires === null ? null : Math.floor((expires - now) / 86_400);
  // What lasts for years was made here and for nobody else.
  const certificate = days === null || days > 800 || days < CERTIFICATE_DAYS ? "" : ` · certificate for ${plural(days, "day")}`;
  set($("about"), { textContent: `Postern ${server.version} · up ${span(now - server.started_at)}${certificate}` });
  const ends = days < 0 ? "certificate has expired" : `certificate ends in ${plural(days ?? 0, "day")}`;
  const isLate = days !== null && days < CERTIFICATE_DAYS;
  set($("certificate"), { hidden: !isLate, textContent: ends, className: `badge dot ${days < 0 ? "bad" : "warn"}` });
  set(document, { title: `${server.domain} · Postern` });
  banner(note, cls);
}

/** What holds for the whole page; empty for nothing. */
function banner(text, cls = "bad") {
  set($("banner"), { textContent: text, className: cls, hidden: !text });
}

const FIGURES = [
  ["Participants", "participants", count, "in all rooms, those that may return included"],
  ["Rooms", "rooms", count, "open now"],
  ["From participants", "bits_in", bits, "media that came in"],
  ["To participants", "bits_out", bits, "media that went out"],
  ["Busiest worker", "busiest", (share) => percent(Math.min(1, share)), "share of a core that the busiest worker uses"],
  ["Drops", "dropped", perSecond, "without what every healthy call drops (marked as usual below)"],
];

function showFigures() {
  const create = ([name, , , title]) => make("dl", { cls: "figure card", title }, make("dt", { text: name }), make("dd", {}, make("span"), make("small")), makeSpark());
  keep($("figures"), FIGURES, ([name]) => name, create, (element, [, key, text]) => {
    const [, figure, spark] = element.children;
    const [value, unit = ""] = text(history.at(-1)[key] ?? 0).split(" ");
    set(figure.firstChild, { textContent: value });
    set(figure.lastChild, { textContent: ` ${unit}` });
    drawSpark(spark, points((h) => h[key]), key === "busiest" ? 0.1 : 1);
  });
}

function showWorkers(state) {
  const create = (w) => make("li", {}, make("span", { text: `Worker ${w.id}` }), makeSpark(), make("b"), make("span", { cls: "quiet" }));
  keep($("workers"), state.workers, (w) => w.id, create, (element, w) => {
    const [, spark, share, people] = element.children;
    const now = Math.min(1, load(w.id) ?? 0);
    drawSpark(spark, points((_, at) => load(w.id, at)), 1);
    set(share, { textContent: percent(now), className: grade(now, 0.75, 0.9) });
    set(people, { textContent: w.participants, title: `${plural(w.participants, "connection")} of participants` });
  });
  const { p50_ms: half, p99_ms: most } = state.forwarding_latency;
  showPairs($("latency"), [["Forwarding, median", ms(half)], ["Forwarding, 99 of 100", ms(most)]]);
}

/** Terms with what they say, and a bar where a share says it better. */
function showPairs(list, rows) {
  const box = { viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" };
  const bar = () => svg("svg", box, svg("rect", { height: 4 }));
  const create = ([term, , share]) => make("div", {}, make("dt", { text: term }), make("dd"), ...(share === undefined ? [] : [bar()]));
  keep(list, rows, ([term]) => term, create, (element, [, text, share, cls = ""]) => {
    set(element.children[1], { textContent: text, className: cls });
    element.children[2]?.firstChild.setAttribute("width", Math.min(100, (share || 0) * 100).toFixed(1));
    element.children[2]?.setAttribute("class", `share ${grade(share, 0.75, 0.9)}`);
  });
}

function showHost({ host }) {
  const full = host.udp_socket_drops;
  const wires = host.interfaces.filter((i) => i.name !== "lo" && i.received_bytes + i.sent_bytes > 0).slice(0, 6);
  showPairs($("host"), [
    ["Processors", percent(host.cpu_ratio), host.cpu_ratio],
    ["Memory", `${bytes(host.memory_used_bytes)} of ${bytes(host.memory_total_bytes)}`, host.memory_used_bytes / host.memory_total_bytes],
    ["Open files", `${count(host.open_files)} of ${count(host.open_files_max)}`, host.open_files / host.open_files_max],
    ["Postern", `${(rate("process", SMOOTH_MS) ?? 0).toFixed(2)} cores · ${bytes(host.process_memory_bytes)}`],
    ["Socket buffers", full ? `${count(full)} dropped when full` : "never full", undefined, grade(full, 1)],
    ...wires.flatMap((i) => {
      const errors = i.errors ?? i.received_errors + i.sent_errors;
      const way = (name) => bits(rate(`${i.name} ${name}`, SMOOTH_MS) * 8);
      const row = [i.name, `↓ ${way("in")} ↑ ${way("out")}`];
      return errors ? [row, [`${i.name}, errors`, count(errors), undefined, "warn"]] : [row];
    }),
  ]);
}

const PATHS = {
  udp: ["UDP", "good", "Directly over UDP: the best there is."],
  tcp: ["TCP", "info", "Directly over TCP: no UDP gets through here."],
  "relay/udp": ["relay UDP", "info", "Through the TURN relay over UDP: the direct way is closed."],
  "relay/tcp": ["relay TCP", "fallback", "Through the TURN relay over TCP: no UDP gets through here."],
  "relay/tls": ["relay TLS", "fallback", "Through the TURN relay over TLS on port 443: a firewall lets nothing else pass."],
};
const QUALITIES = { excellent: ["good", 3], good: ["good", 2], poor: ["warn", 1], lost: ["bad", 0] };
const LAYERS = ["low", "medium", "high"];
const COLUMNS = [
  ["Participant", "name"],
  ["Path", "path"],
  ["Quality", "quality"],
  ["Bitrate", "number bitrate", "↑ from the participant, ↓ to the participant"],
  ["Lost", "number lost", "share of packets: ↑ from the participant, ↓ to the participant"],
  ["Round trip", "number trip", "and jitter below"],
  ["Publishes", "publishes"],
  ["Receives", "receives", "with the size of the picture"],
  ["", "act"],
];
/** Rooms are folded out at first while no more people than this are in them. */
const UNFOLDED = 24;
/** So many received tracks are listed, more are summed up. */
const LISTED = 6;

const ICONS = {
  camera: "M2 4.5h7.5v7H2zM9.5 7.5 14 5v6L9.5 8.5",
  microphone: "M8 2a2 2 0 0 1 2 2v3.5a2 2 0 0 1-4 0V4a2 2 0 0 1 2-2zM3.8 7.5a4.2 4.2 0 0 0 8.4 0M8 11.7V14",
  screen_share: "M2 3.5h12v7.5H2zM5.5 13.5h5M8 11v2.5",
  screen_share_audio: "M2.5 6.2h2.3L8 3.5v9L4.8 9.8H2.5zM10.5 6a3 3 0 0 1 0 4M12.3 4.2a5.6 5.6 0 0 1 0 7.6",
};

const icon = (name) => svg("svg", { viewBox: "0 0 16 16", class: "glyph", "aria-hidden": "true" }, svg("path", { d: ICONS[name] ?? "M8 8h.01" }));

function makeSignal() {
  const bars = [0, 1, 2].map((n) => svg("rect", { x: 1 + n * 5, y: 9 - n * 3.5, width: 3.4, height: 5 + n * 3.5, rx: 1 }));
  return svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, ...bars);
}

const called = (p) => p.name || p.identity;

function showRooms() {
  const wanted = $("filter").value.trim().toLowerCase();
  const has = (text) => text.toLowerCase().includes(wanted);
  const fits = (room) => (has(room.name) ? room.participants : room.participants.filter((p) => has(p.identity) || has(p.name)));
  const rooms = latest.rooms.toSorted((a, b) => byName(a.name, b.name));
  const shown = [];
  let [people, left] = [0, UNFOLDED];
  keep($("rooms"), rooms, (room) => room.sid, createRoom, (element, room) => {
    const here = fits(room);
    set(element, { hidden: here.length === 0 && !has(room.name) });
    if (element.hidden) return;
    shown.push(element);
    people += here.length;
    const isFew = here.length <= left || rooms.length === 1;
    if (isFew) left -= here.length;
    element.chosen ??= isFew;
    if (!wanted) element.found = undefined;
    // Who looks for people wants to see them.
    element.isOpen = wanted ? (element.found ?? (element.chosen || isFew)) : element.chosen;
    if (element.open !== element.isOpen) element.open = element.isOpen;
    changeRoom(element, room, here);
  });
  const closes = shown.some((room) => room.isOpen);
  set($("unfold"), { closes, hidden: shown.length < 2, textContent: closes ? "Close all" : "Open all" });
  set($("matches"), { textContent: wanted ? `${plural(people, "participant")} in ${plural(shown.length, "room")}` : "" });
  set($("address"), { textContent: `wss://${latest.server.domain}` });
  set($("no-match"), { hidden: shown.length > 0 || rooms.length === 0 });
}

/** Folds a room out or in, as its reader says: for good, or while the filter lasts. */
function fold(element, isOpen) {
  element.isOpen = isOpen;
  element[$("filter").value.trim() ? "found" : "chosen"] = isOpen;
}

function createRoom() {
  const head = make("tr", { role: "row" });
  for (const [text, cls, title = ""] of COLUMNS) head.append(make("th", { text, cls, title, scope: "col", role: "columnheader" }));
  const groups = [make("thead", { role: "rowgroup" }, head), make("tbody", { role: "rowgroup" })];
  const summary = make("summary", {}, make("bdi", { cls: "room-name" }), make("span", { cls: "badge dot" }), make("span", { cls: "quiet" }));
  const element = make("details", { cls: "room" }, summary, make("table", { cls: "people", role: "table" }, ...groups));
  element.addEventListener("toggle", () => {
    if (element.open === element.isOpen) return;
    fold(element, element.open);
    showRooms();
  });
  return element;
}

function changeRoom(element, room, here) {
  const [name, trouble, about] = element.firstElementChild.children;
  set(name, { textContent: room.name, title: room.name });
  const [up, down] = [sum(room.participants, (p) => p.bits_in), sum(room.participants, (p) => p.bits_out)];
  const age = span(latest.server.now_ms / 1_000 - room.created_at);
  set(about, { textContent: `${plural(room.participants.length, "participant")} · ↑ ${bits(up)} ↓ ${bits(down)} · open for ${age}` });
  const [lost, poor] = ["lost", "poor"].map((quality) => room.participants.filter((p) => p.quality === quality).length);
  const troubles = [lost && `${lost} lost`, poor && `${poor} poor`].filter(Boolean).join(", ");
  set(trouble, { hidden: !troubles, textContent: troubles, className: `badge dot ${lost ? "bad" : "warn"}` });
  // What is folded in costs nothing.
  if (!element.open) return;
  const sources = new Map(room.participants.flatMap((p) => p.publishes).map((t) => [t.sid, t.source]));
  keep(element.querySelector("tbody"), here, (p) => p.sid, createParticipant, (row, p) => changeParticipant(row, p, room, sources));
}

function createParticipant() {
  const row = make("tr", { role: "row" });
  for (const [label, cls] of COLUMNS) {
    row.append(make("td", { cls, role: "cell" }));
    row.lastChild.dataset.label = label;
  }
  const [who, path, quality, bitrate, lost, trip, publishes, receives, act] = row.children;
  who.append(make("bdi", { cls: "called" }), make("div", { cls: "quiet" }));
  path.append(make("span"));
  quality.append(make("span", {}, makeSignal(), make("span")));
  for (const cell of [bitrate, lost, trip]) cell.append(make("div"), make("div"));
  for (const cell of [publishes, receives]) cell.append(make("ul", { cls: "tracks" }));
  act.append(make("button", { type: "button", cls: "plain small", text: "Remove" }));
  return row;
}

function changeParticipant(row, p, room, sources) {
  const [who, path, quality, bitrate, lost, trip, publishes, receives, act] = row.children;
  set(row, { className: p.state === "away" ? "away" : "" });
  set(who.children[0], { textContent: called(p), title: called(p) });
  const state = p.state === "active" ? "" : p.state === "away" ? "away, may return" : p.state;
  const since = `for ${span(latest.server.now_ms / 1_000 - p.joined_at)}`;
  const notes = [state, p.name && p.name !== p.identity ? p.identity : "", p.hidden ? "hidden" : "", since, p.client ?? "", `worker ${p.worker}`];
  set(who.children[1], { textContent: notes.filter(Boolean).join(" · ") });
  const [label, cls, title] = PATHS[p.path] ?? [p.path ?? "–", "none", "No media path yet."];
  set(path.firstChild, { textContent: label, className: `badge ${cls}`, title });
  const [tone, level] = QUALITIES[p.quality] ?? ["none", 0];
  set(quality.firstChild, { className: `signal ${tone} level-${level}` });
  set(quality.firstChild.lastChild, { textContent: p.quality ?? "–" });
  pair(bitrate, `↑ ${bits(p.bits_in)}`, `↓ ${bits(p.bits_out)}`);
  pair(lost, `↑ ${percent(p.lost_up, 1)}`, `↓ ${percent(p.lost_down, 1)}`, grade(p.lost_up, 0.02, 0.08), grade(p.lost_down, 0.02, 0.08));
  const whole = (value) => (value === null ? "–" : `${Math.round(value)} ms`);
  pair(trip, whole(p.rtt_ms), p.jitter_ms === null ? "" : `± ${whole(p.jitter_ms)}`, grade(p.rtt_ms, 300, 600), "quiet");
  showPublished(publishes.firstChild, p, room);
  showReceived(receives.firstChild, p.subscribes, sources);
  set(act.firstChild, { ariaLabel: `Remove ${called(p)}` }).onclick = () => confirmRemoval(room, p, row);
}

function pair(cell, first, second, firstCls = "", secondCls = "") {
  set(cell.children[0], { textContent: first, className: firstCls });
  set(cell.children[1], { textContent: second, className: secondCls });
}

function showPublished(list, p, room) {
  const button = () => make("button", { type: "button", cls: "plain small" });
  const create = (t) => make("li", {}, icon(t.source), make("span"), make("span", { cls: "quiet" }), button());
  keep(list, p.publishes, (t) => t.sid, create, (item, t) => {
    const [, name, codec, button] = item.children;
    set(item, { className: t.muted ? "muted" : "" });
    set(name, { textContent: plain(t.source) });
    set(codec, { textContent: t.muted ? "muted" : t.codec });
    const action = t.muted ? "Unmute" : "Mute";
    set(button, { textContent: action, ariaLabel: `${action} ${plain(t.source)} of ${called(p)}` });
    button.onclick = () => act(button, "mute", { room: room.name, identity: p.identity, track: t.sid, muted: !t.muted });
  });
}

const layerName = (layer) => LAYERS[layer] ?? `layer ${layer}`;

/** How a track is received: which of its layers, of those that are wanted. */
function layerOf(s, best = "") {
  if (s.paused) return "paused";
  if (s.kind === "audio") return "";
  return s.layer === null ? "no picture yet" : `${layerName(s.layer)}${best}`;
}

/** Few tracks one by one; many as their sums, with the list to fold out. */
function showReceived(list, subscribes, sources) {
  const sourceOf = (s) => sources.get(s.track) ?? s.kind;
  const track = (s) => ({ key: s.track, icon: sourceOf(s), who: s.publisher, what: plain(sourceOf(s)), how: layerOf(s, ` of ${layerName(s.layer_max)}`) });
  const rows = subscribes.length <= LISTED || list.unfolded ? subscribes.map(track) : sums(subscribes, sourceOf);
  const fold = subscribes.length > LISTED ? [{ key: "fold", text: list.unfolded ? "Show sums" : `Show all ${subscribes.length}` }] : [];
  const unfold = () => ((list.unfolded = !list.unfolded), showRooms());
  const create = (row) =>
    row.text
      ? make("li", {}, make("button", { type: "button", cls: "link", onclick: unfold }))
      : make("li", {}, icon(row.icon), make("span", {}, make("bdi"), make("span")), make("span", { cls: "quiet" }));
  keep(list, [...rows, ...fold], (row) => row.key, create, (item, row) => {
    if (row.text) return void set(item.firstChild, { textContent: row.text, ariaExpanded: String(list.unfolded === true) });
    const [, { firstChild: who, lastChild: what }, how] = item.children;
    set(who, { textContent: row.who, title: row.who, hidden: row.who === "" });
    set(what, { textContent: row.who ? ` ${row.what}` : row.what });
    set(how, { textContent: row.how });
  });
}

/** Tracks by their source, with how many have which layer. */
function sums(subscribes, sourceOf) {
  return [...Map.groupBy(subscribes, sourceOf)].map(([source, of]) => {
    const layers = [...Map.groupBy(of, (s) => layerOf(s))].filter(([layer]) => layer).sort(([a], [b]) => LAYERS.indexOf(b) - LAYERS.indexOf(a));
    const how = layers.map(([layer, those]) => `${those.length} ${layer}`).join(", ");
    return { key: `sum ${source}`, icon: source, who: "", what: `${of.length} × ${plain(source)}`, how };
  });
}

function showCounts(id, rows) {
  const nameOf = (r) => (r.what ? `${id} ${r.what} ${r.reason}` : `${id} ${r.reason}`);
  const counted = rows.map((r) => ({ ...r, key: nameOf(r), now: growth(nameOf(r), MINUTE_MS).by, isUsual: USUAL.has(r.reason) }));
  const sorted = counted.toSorted((a, b) => a.isUsual - b.isUsual || b.now - a.now || b.total - a.total);
  const create = () => make("li", {}, make("span", {}, make("span"), make("small")), makeSpark(), make("b"), make("span", { cls: "quiet" }));
  keep($(id), sorted, (r) => r.key, create, (item, r) => {
    const [name, spark, now, total] = item.children;
    const isIdle = growth(r.key, HISTORY_MS).by === 0;
    set(item, { className: `${r.isUsual ? "usual" : ""} ${isIdle ? "idle" : ""}`, title: r.isUsual ? "Every healthy call drops some of these." : "" });
    set(name.firstChild, { textContent: plain(r.reason) });
    set(name.lastChild, { textContent: r.isUsual ? " usual" : r.what === "turn_refusals" ? " TURN" : r.what ? " connection" : "" });
    drawSpark(spark, points((_, at) => rate(r.key, SMOOTH_MS, at)), 1);
    set(now, { textContent: r.now ? count(r.now) : "–", title: `${count(r.now)} in the last minute` });
    set(total, { textContent: count(r.total), title: `${count(r.total)} since the start` });
  });
}

const LEVELS = { warn: { text: "warning", cls: "badge warn" }, error: { text: "error", cls: "badge bad" } };

function showEvents({ events }) {
  const create = (e) => {
    const level = LEVELS[e.level] ? [make("span", LEVELS[e.level])] : [];
    const words = make("span", { cls: "words" }, ...level, make("bdi", { text: e.text }));
    if (e.room) words.append(make("bdi", { cls: "quiet", text: e.room, title: `room ${e.room}` }));
    return make("li", {}, make("time", { text: clock(e.at_ms), dateTime: new Date(e.at_ms).toISOString() }), words);
  };
  // The same twice in a millisecond is told once.
  keep($("events"), events.toReversed(), (e) => `${e.at_ms} ${e.room} ${e.text}`, create, () => {});
}

let seenAt = 0;
let lastPoll = Promise.resolve();
let pollTimer = 0;
let noticeTimer = 0;

function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  return fetch(path, { ...options, headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
}

/** A button keeps the focus while the server acts, so it is not disabled: it does nothing twice. */
async function act(button, action, what) {
  if (button.isBusy) return;
  button.isBusy = true;
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await ask(`/api/v1/${action}`, { method: "POST", headers, body: JSON.stringify(what) });
    if (!answer.ok) notice((await answer.json().catch(() => ({}))).error ?? `The server answered ${answer.status}.`);
    await poll();
  } catch {
    notice("The server did not answer. It is not known whether this was done.");
  }
  button.isBusy = false;
}

function confirmRemoval(room, p, row) {
  const dialog = $("confirm");
  set($("confirm-text"), { textContent: `${called(p)} leaves “${room.name}”, and may join again while the token is valid.` });
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    const summary = row.closest("details")?.firstElementChild;
    await act(row.lastElementChild.firstChild, "remove", { room: room.name, identity: p.identity });
    // The focus was on what is gone now.
    if (!row.isConnected) summary?.focus();
  };
  dialog.returnValue = "no";
  dialog.showModal();
}

/** What came of an action, for a moment. */
function notice(text) {
  $("notice").textContent = text;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => ($("notice").textContent = ""), NOTICE_MS);
}

function show(state) {
  remember(state);
  for (const part of [showTop, showFigures, drawTraffic, showWorkers, showHost, showRooms, showEvents]) part(state);
  showCounts("drops", state.drops);
  showCounts("refusals", state.refusals);
}

/** Shows the form, the picture, or neither. */
function reveal(what) {
  set($("sign-in"), { hidden: what !== "sign-in" });
  set($("main"), { hidden: what !== "main" });
  set($("sign-out"), { hidden: what !== "main" || sessionStorage.getItem(TOKEN) === null });
}

/** Shows the form, and what was wrong with the token that the server has just refused. */
function askForToken(refused) {
  // Another one was given in the meantime.
  if (refused !== sessionStorage.getItem(TOKEN)) return;
  sessionStorage.removeItem(TOKEN);
  set($("sign-in-error"), { textContent: refused === null ? "" : "This is not the token. It stands in the server's configuration as admin.token." });
  set($("phase"), { hidden: true });
  banner("");
  reveal("sign-in");
  $("token").focus();
}

function unreachable(text) {
  banner(text);
  set($("main"), { className: "stale" });
  set($("phase"), { hidden: true });
}

/** One after the other: an older answer never comes over a newer one. */
const poll = () => (lastPoll = lastPoll.then(pollOnce).catch(console.error));

async function pollOnce() {
  const token = sessionStorage.getItem(TOKEN);
  let answer, body;
  try {
    answer = await ask("/api/v1/state");
    body = await answer.json().catch(() => ({}));
  } catch {
    return unreachable(seenAt ? `Not reachable since ${clock(seenAt)}. What is shown is from then.` : "The server is not reachable.");
  }
  if (answer.status === 401) return askForToken(token);
  if (!answer.ok) return unreachable(body.error ? `The server says: ${body.error}` : `The server answered ${answer.status}.`);
  seenAt = Date.now();
  reveal("main");
  set($("main"), { className: "" });
  show(body);
}

/** Asks again and again while somebody looks. */
async function run() {
  clearTimeout(pollTimer);
  if (document.hidden) return;
  await poll();
  clearTimeout(pollTimer);
  // Who has to sign in asks by doing so.
  if ($("sign-in").hidden) pollTimer = setTimeout(run, POLL_MS);
}

function showTheme(choice) {
  if (choice) document.documentElement.dataset.theme = choice;
  const isDark = (choice ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const other = isDark ? "light" : "dark";
  set($("theme"), { title: `Use ${other} colours`, ariaLabel: `Use ${other} colours` });
  return other;
}

const redraw = (draw) => () => latest && !$("main").hidden && draw();

function point(event) {
  const box = $("traffic").getBoundingClientRect();
  pointedAt = event.type === "pointerleave" ? null : Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  redraw(drawTraffic)();
}

for (const type of ["pointermove", "pointerdown", "pointerleave"]) $("traffic").addEventListener(type, point);
new ResizeObserver(redraw(drawTraffic)).observe($("traffic"));
showTheme(localStorage.getItem(THEME));
$("theme").addEventListener("click", () => {
  const other = showTheme(localStorage.getItem(THEME));
  localStorage.setItem(THEME, other);
  showTheme(other);
});
$("filter").addEventListener("input", redraw(showRooms));
$("unfold").addEventListener("click", () => {
  for (const room of $("rooms").children) if (!room.hidden) fold(room, !$("unfold").closes);
  showRooms();
});
$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  // Only visible ASCII can be sent in a header, and be the token.
  sessionStorage.setItem(TOKEN, $("token").value.trim().replace(/[^!-~]/g, "?"));
  $("token").value = "";
  run();
});
$("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN);
  location.reload();
});
document.addEventListener("visibilitychange", run);
run();
