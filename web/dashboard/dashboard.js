// The administrator's dashboard: asks for /api/v1/state each second and shows it. What comes from participants (names, rooms,
// programs) is hostile: it only ever becomes text. Elements are kept and changed by key, so that focus, selection and what is
// folded out survive.

const POLL_MS = 1_000;
/** How long charts look back. */
const HISTORY_MS = 5 * 60_000;
const MINUTE_MS = 60_000;
const THEME = "postern.theme";
const TOKEN = "postern.token";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// ---- small tools ------------------------------------------------------------------------------------------------------

/** An element with text, classes and children. */
function make(tag, { text, cls, ...props } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), props);
  if (text !== undefined) element.textContent = text;
  if (cls) element.className = cls;
  element.append(...children);
  return element;
}

/** Sets what differs: an element that is the same is left alone. */
function set(element, values) {
  for (const [key, value] of Object.entries(values)) if (element[key] !== value) element[key] = value;
  return element;
}

function svg(tag, attributes = {}, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** One child for each row, by its key: made once, changed afterwards, in the order of the rows. */
function keep(parent, rows, keyOf, create, change) {
  parent.known ??= new Map();
  const seen = new Set();
  let at = parent.firstElementChild;
  for (const row of rows) {
    const key = keyOf(row);
    seen.add(key);
    let child = parent.known.get(key);
    if (!child) parent.known.set(key, (child = create(row)));
    change(child, row);
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
  for (const [key, child] of parent.known) {
    if (seen.has(key)) continue;
    child.remove();
    parent.known.delete(key);
  }
}

const scaled = (value, base, units) => {
  let at = 0;
  for (; value >= base && at < units.length - 1; at += 1) value /= base;
  return `${value >= 100 || at === 0 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
};
const bits = (value) => scaled(value, 1_000, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]);
const bytes = (value) => scaled(value, 1_024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const percent = (ratio, digits = 0) => `${(ratio * 100).toFixed(digits)} %`;
const count = new Intl.NumberFormat("en").format;
const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
const plural = (n, one) => `${count(n)} ${n === 1 ? one : `${one}s`}`;

function span(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3_600)} h ${Math.floor((seconds % 3_600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} days`;
}

// ---- what is remembered -------------------------------------------------------------------------------------------------

/** States of the last minutes, oldest first, each with the moment it came. */
let history = [];
let lastSeen = 0;

function remember(state) {
  const now = performance.now();
  // A server that was started anew counts from zero.
  if (history.at(-1)?.state.server.started_at !== state.server.started_at) history = [];
  history.push({ at: now, state });
  history = history.filter((h) => now - h.at <= HISTORY_MS);
}

/** How much a total grew in a second: since the state before, or over so long. */
function rate(of, overMs = 0) {
  const last = history.at(-1);
  const before = overMs ? history.find((h) => last.at - h.at <= overMs) : history.at(-2);
  const seconds = before ? (last.at - before.at) / 1_000 : 0;
  return seconds > 0 ? Math.max(0, of(last.state) - of(before.state)) / seconds : 0;
}

/** Growth over the last minute. */
function recently(of) {
  const last = history.at(-1);
  const before = history.find((h) => last.at - h.at <= MINUTE_MS);
  return Math.max(0, of(last.state) - of(before.state));
}

/** What is dropped in every healthy call: browsers send twice to probe the network, and try the relay before they need it. */
const USUAL = ["rtp_duplicate", "relay_head_start"];
const lost = (state) => state.drops.filter((d) => !USUAL.includes(d.reason)).reduce((all, d) => all + d.total, 0);

// ---- charts -------------------------------------------------------------------------------------------------------------

/** A line of values over the time looked back on, as coordinates of a box. */
function line(of, width, height, max) {
  const now = history.at(-1).at;
  return history.map(({ at, state }) => {
    const x = width - ((now - at) / HISTORY_MS) * width;
    return `${x.toFixed(1)},${(height - (of(state) / max) * height).toFixed(1)}`;
  });
}

function sparkline(element, of) {
  const [width, height] = [160, 28];
  const max = Math.max(...history.map((h) => of(h.state)), 1e-9);
  const points = line(of, width, height - 3, max * 1.1);
  element.setAttribute("viewBox", `0 0 ${width} ${height}`);
  element.setAttribute("preserveAspectRatio", "none");
  element.replaceChildren(svg("polyline", { class: "line in", points: points.join(" ") }));
}

/** The least round number that is not below. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= value);
}

function traffic(element) {
  const width = Math.max(element.clientWidth, 200);
  const [height, left, bottom] = [Math.max(element.clientHeight, 120), 74, 20];
  const [inner, tall] = [width - left, height - bottom];
  const series = [["in", (s) => s.totals.bits_in], ["out", (s) => s.totals.bits_out]];
  const max = ceiling(Math.max(...history.flatMap(({ state }) => series.map(([, of]) => of(state))), 1_000));
  element.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const y = tall - share * tall + 0.5;
    parts.push(svg("line", { class: "grid", x1: left, x2: width, y1: y, y2: y }));
    parts.push(svg("text", { x: left - 8, y: y + (share === 1 ? 9 : 4), "text-anchor": "end" }, bits(max * share)));
  }
  for (const [minutes, label] of [[5, "5 min ago"], [2.5, "2½ min"], [0, "now"]]) {
    const x = width - (minutes / 5) * inner;
    parts.push(svg("text", { x, y: height - 4, "text-anchor": minutes === 5 ? "start" : minutes ? "middle" : "end" }, label));
  }
  const group = svg("g", { transform: `translate(${left} 0)` });
  for (const [name, of] of series) {
    const points = line(of, inner, tall, max);
    const [first, last] = [points[0].split(",")[0], points.at(-1).split(",")[0]];
    group.append(svg("polygon", { class: `area ${name}`, points: `${first},${tall} ${points.join(" ")} ${last},${tall}` }));
    group.append(svg("polyline", { class: `line ${name}`, points: points.join(" ") }));
  }
  element.replaceChildren(...parts, group);
}

// ---- the parts of the page ------------------------------------------------------------------------------------------------

const PHASES = { ready: ["ready", "good"], draining: ["draining: no new rooms", "fair"], stopping: ["stopping", "bad"], booting: ["starting", "fair"] };

function showTop({ server }) {
  const [phase, cls] = PHASES[server.phase] ?? [server.phase, ""];
  set($("phase"), { textContent: phase, className: `badge ${cls}` });
  set($("domain"), { textContent: server.domain });
  const up = span(server.now_ms / 1_000 - server.started_at);
  const { note, warns } = certificate(server);
  set($("about"), { textContent: `Postern ${server.version} · up for ${up}${note}`, className: warns ? "error" : "quiet" });
  document.title = `${server.domain} · Postern`;
}

function certificate({ certificate_expires_at: expires, now_ms }) {
  if (!expires) return { note: "" };
  const days = Math.floor((expires - now_ms / 1_000) / 86_400);
  if (days < 0) return { note: " · certificate has expired", warns: true };
  // What lasts longer was made here, for nobody else.
  return { note: days < 800 ? ` · certificate for ${plural(days, "day")}` : "", warns: days < 14 };
}

const FIGURES = [
  ["Participants", (s) => s.totals.participants, count],
  ["Rooms", (s) => s.totals.rooms, count],
  ["From participants", (s) => s.totals.bits_in, bits],
  ["To participants", (s) => s.totals.bits_out, bits],
  ["Busiest worker", (s) => s.busiest, percent],
  ["Dropped a second", (s) => s.dropped, (v) => (v < 10 ? v.toFixed(1) : count(Math.round(v)))],
];

function showFigures(state) {
  const create = ([name]) => make("dl", { cls: "figure" }, make("dt", { text: name }), make("dd"), svg("svg", { "aria-hidden": "true" }));
  keep($("figures"), FIGURES, ([name]) => name, create, (element, [, of, text]) => {
    const [value, unit] = text(of(state)).split(" ");
    const shown = element.children[1];
    if (shown.said !== `${value} ${unit}`) {
      shown.said = `${value} ${unit}`;
      shown.replaceChildren(value, ...(unit ? [make("small", { text: ` ${unit}` })] : []));
    }
    sparkline(element.lastElementChild, of);
  });
}

function showWorkers(state) {
  const create = (w) => make("li", {}, make("span", { text: `${w.id}` }), make("meter", { min: 0, max: 1, low: 0.75, high: 0.9, optimum: 0.2 }), make("span"));
  keep($("workers"), state.workers, (w) => w.id, create, (element, w) => {
    const [, meter, text] = element.children;
    const load = Math.min(1, rate((s) => s.workers.find((o) => o.id === w.id)?.busy_seconds ?? 0, 3_000));
    set(meter, { value: load, title: `worker ${w.id}: ${percent(load)}` });
    meter.setAttribute("aria-label", `worker ${w.id}`);
    set(text, { textContent: `${percent(load)} · ${w.participants}` });
    text.title = plural(w.participants, "transport");
  });
  const { p50_ms: half, p99_ms: most } = state.forwarding_latency;
  const ms = (value) => (value === null ? "–" : `${value} ms`);
  set($("latency"), { textContent: `Since the start, half of all packets were passed on within ${ms(half)}, 99 of 100 within ${ms(most)}.` });
}

function showHost({ host }) {
  const rows = [
    ["Processors", percent(host.cpu_ratio)],
    ["Memory", `${bytes(host.memory_used_bytes)} of ${bytes(host.memory_total_bytes)}`],
    ["Postern", `${rate((s) => s.host.process_cpu_seconds, 5_000).toFixed(2)} cores · ${bytes(host.process_memory_bytes)}`],
    ["Open files", `${count(host.open_files)} of ${count(host.open_files_max)}`],
    ["Full socket buffers", `${count(host.udp_socket_drops)} dropped`],
    ...host.interfaces.filter((i) => i.received_bytes + i.sent_bytes > 0).slice(0, 6).map((i) => {
      const of = (key) => (s) => s.host.interfaces.find((o) => o.name === i.name)?.[key] ?? 0;
      const errors = i.received_errors + i.sent_errors;
      return [i.name, `↓ ${bits(rate(of("received_bytes"), 5_000) * 8)} ↑ ${bits(rate(of("sent_bytes"), 5_000) * 8)}${errors ? ` · ${plural(errors, "error")}` : ""}`];
    }),
  ];
  const pairs = rows.flatMap(([name, value]) => [{ key: `t ${name}`, tag: "dt", text: name }, { key: `d ${name}`, tag: "dd", text: value }]);
  keep($("host"), pairs, (p) => p.key, (p) => make(p.tag), (element, p) => set(element, { textContent: p.text }));
}

// ---- rooms ----------------------------------------------------------------------------------------------------------------

const PATHS = {
  udp: ["UDP", "good", "directly, over UDP"],
  tcp: ["TCP", "fair", "directly, over TCP (no UDP gets through)"],
  "relay/udp": ["relay UDP", "fair", "through the relay, over UDP"],
  "relay/tcp": ["relay TCP", "fair", "through the relay, over TCP"],
  "relay/tls": ["relay TLS", "fair", "through the relay over TLS: a firewall lets nothing else pass"],
};
const QUALITIES = { excellent: "good", good: "good", poor: "fair", lost: "bad" };
const LAYERS = ["low", "medium", "high"];
const COLUMNS = [["Participant", "name"], ["Path", ""], ["Quality", ""], ["Bitrate", "number"], ["Lost", "number"], ["Round trip", "number"], ["Publishes", "broad"], ["Receives", "broad"], ["", ""]];

function showRooms(state) {
  const wanted = $("filter").value.trim().toLowerCase();
  const has = (text) => text.toLowerCase().includes(wanted);
  const fits = (room) => (has(room.name) ? room : { ...room, participants: room.participants.filter((p) => has(p.identity) || has(p.name)) });
  const rooms = wanted ? state.rooms.map(fits).filter((r) => r.participants.length > 0 || has(r.name)) : state.rooms;
  keep($("rooms"), rooms, (r) => r.sid, createRoom, (element, room) => changeRoom(element, room, state));
  set($("no-rooms"), { hidden: rooms.length > 0, textContent: wanted ? "No room and no participant is called so." : `Nobody is here. Point an app at wss://${state.server.domain}` });
}

function createRoom() {
  const head = make("tr", {}, ...COLUMNS.map(([name, cls]) => make("th", { text: name, cls, scope: "col" })));
  const body = make("tbody");
  const summary = make("summary", {}, make("span", { cls: "room-name" }), make("span", { cls: "quiet" }));
  const element = make("details", { cls: "room", open: $("rooms").childElementCount < 5 }, summary, make("table", { cls: "people" }, make("thead", {}, head), body));
  element.addEventListener("toggle", () => history.length && showRooms(history.at(-1).state));
  return element;
}

function changeRoom(element, room, state) {
  const [name, about] = element.firstElementChild.children;
  set(name, { textContent: room.name });
  const sum = (key) => room.participants.reduce((all, p) => all + p[key], 0);
  set(about, { textContent: `${plural(room.participants.length, "participant")} · ↑ ${bits(sum("bits_in"))} ↓ ${bits(sum("bits_out"))} · ${span(state.server.now_ms / 1_000 - room.created_at)}` });
  // What is folded in costs nothing.
  if (element.open) keep(element.querySelector("tbody"), room.participants, (p) => p.sid, createParticipant, (row, p) => changeParticipant(row, p, room));
}

function createParticipant() {
  const cells = COLUMNS.map(([name, cls]) => {
    const cell = make("td", { cls });
    cell.dataset.label = name;
    return cell;
  });
  const [who, path, quality, , , , publishes, receives, actions] = cells;
  who.append(make("b"), make("div", { cls: "quiet" }));
  path.append(make("span", { cls: "badge" }));
  quality.append(make("span", { cls: "badge" }));
  publishes.append(make("ul", { cls: "tracks" }));
  receives.append(make("ul", { cls: "tracks" }));
  actions.append(make("button", { type: "button", cls: "plain small", text: "Remove" }));
  return make("tr", {}, ...cells);
}

function changeParticipant(row, p, room) {
  const [who, path, quality, bitrate, lost, trip, publishes, receives, actions] = row.children;
  set(row, { className: p.state === "away" ? "away" : "" });
  set(who.children[0], { textContent: p.name || p.identity });
  const notes = [p.name && p.name !== p.identity ? p.identity : "", p.state === "active" ? "" : p.state, p.hidden ? "hidden" : "", p.client ?? "", `worker ${p.worker}`];
  set(who.children[1], { textContent: notes.filter(Boolean).join(" · ") });
  const [label, cls, title] = PATHS[p.path] ?? ["–", "", "no media yet"];
  set(path.firstChild, { textContent: label, className: `badge ${cls}`, title });
  set(quality.firstChild, { textContent: p.quality ?? "–", className: `badge ${QUALITIES[p.quality] ?? ""}` });
  set(bitrate, { textContent: `↑ ${bits(p.bits_in)}\n↓ ${bits(p.bits_out)}` });
  set(lost, { textContent: `↑ ${percent(p.lost_up, 1)}\n↓ ${percent(p.lost_down, 1)}` });
  const jitter = p.jitter_ms === null ? "" : ` ± ${p.jitter_ms.toFixed(0)}`;
  set(trip, { textContent: p.rtt_ms === null ? "–" : `${p.rtt_ms.toFixed(0)}${jitter} ms` });
  showPublished(publishes.firstChild, p, room);
  showReceived(receives.firstChild, p, room);
  const remove = actions.firstChild;
  remove.onclick = () => ask(room, p);
  remove.setAttribute("aria-label", `Remove ${p.name || p.identity}`);
}

function showPublished(list, p, room) {
  const create = () => make("li", {}, make("span"), make("button", { type: "button", cls: "plain small" }));
  keep(list, p.publishes, (t) => t.sid, create, (item, t) => {
    set(item, { className: t.muted ? "muted" : "" });
    set(item.children[0], { textContent: `${t.source.replaceAll("_", " ")}${t.codec ? ` · ${t.codec}` : ""}` });
    const button = set(item.children[1], { textContent: t.muted ? "Unmute" : "Mute" });
    button.onclick = () => act(button, "mute", { room: room.name, identity: p.identity, track: t.sid, muted: !t.muted });
    button.setAttribute("aria-label", `${t.muted ? "Unmute" : "Mute"} ${t.source.replaceAll("_", " ")} of ${p.name || p.identity}`);
  });
}

function showReceived(list, p, room) {
  const tracks = new Map(room.participants.flatMap((o) => o.publishes.map((t) => [t.sid, t])));
  const layered = (s) => (s.layer === null ? "no picture yet" : `${LAYERS[s.layer] ?? s.layer} of ${LAYERS[s.layer_max] ?? s.layer_max}`);
  keep(list, p.subscribes, (s) => s.track, () => make("li", {}, make("span"), make("span", { cls: "quiet" })), (item, s) => {
    set(item.children[0], { textContent: `${s.publisher} ${(tracks.get(s.track)?.source ?? s.kind).replaceAll("_", " ")}` });
    set(item.children[1], { textContent: s.paused ? "paused" : s.kind === "video" ? layered(s) : "" });
  });
}

// ---- counts and events ------------------------------------------------------------------------------------------------------

function showCounts(name, rows, listOf) {
  const key = (r) => `${r.what ?? ""} ${r.reason}`;
  const now = (r) => recently((s) => listOf(s).find((o) => key(o) === key(r))?.total ?? 0);
  const sorted = rows.map((r) => ({ ...r, now: now(r) })).toSorted((a, b) => b.now - a.now || b.total - a.total);
  const create = () => make("tr", {}, make("td"), make("td", { cls: "now" }), make("td", { cls: "quiet" }));
  keep($(name), sorted, key, create, (row, r) => {
    set(row.children[0], { textContent: r.reason.replaceAll("_", " "), title: r.what ?? "" });
    set(row.children[1], { textContent: r.now ? count(r.now) : "" });
    set(row.children[2], { textContent: count(r.total) });
  });
  set($(`no-${name}`), { hidden: rows.length > 0 });
}

function showEvents({ events }) {
  const numbered = events.map((e, at) => ({ ...e, key: `${e.at_ms} ${e.room} ${e.text} ${at && events[at - 1].at_ms === e.at_ms ? at : ""}` })).toReversed();
  const create = (e) => make("li", {}, make("time", { text: clock(e.at_ms) }), make("span", { cls: e.level, text: e.room ? `${e.text} · ${e.room}` : e.text }));
  keep($("events"), numbered, (e) => e.key, create, () => {});
  set($("no-events"), { hidden: events.length > 0 });
}

// ---- asking the server --------------------------------------------------------------------------------------------------------

async function fetched(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  return fetch(path, { ...options, headers, cache: "no-store", signal: AbortSignal.timeout(5_000) });
}

async function act(button, action, what) {
  button.disabled = true;
  try {
    const answer = await fetched(`/api/v1/${action}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(what) });
    if (!answer.ok) tell((await answer.json().catch(() => ({}))).error ?? `the server answered ${answer.status}`);
    await poll();
  } catch {
    tell("The server did not answer.");
  }
  button.disabled = false;
}

function ask(room, p) {
  const dialog = $("confirm");
  $("confirm-text").textContent = `${p.name || p.identity} leaves ${room.name}, and may join again with a token that is still valid.`;
  dialog.onclose = () => dialog.returnValue === "yes" && act($("confirm"), "remove", { room: room.name, identity: p.identity });
  dialog.returnValue = "no";
  dialog.showModal();
}

let toldUntil = 0;

function tell(text) {
  toldUntil = performance.now() + 6_000;
  set($("banner"), { textContent: text, hidden: false });
}

function show(state) {
  state.busiest = 0;
  state.dropped = 0;
  remember(state);
  state.busiest = Math.max(0, ...state.workers.map((w) => Math.min(1, rate((s) => s.workers.find((o) => o.id === w.id)?.busy_seconds ?? 0))));
  state.dropped = rate(lost);
  showTop(state);
  showFigures(state);
  traffic($("traffic"));
  showWorkers(state);
  showHost(state);
  showRooms(state);
  showCounts("drops", state.drops, (s) => s.drops);
  showCounts("refusals", state.refusals, (s) => s.refusals);
  showEvents(state);
}

function signedOut(wasWrong, error) {
  set($("main"), { hidden: true });
  set($("sign-in"), { hidden: false });
  set($("sign-in-error"), { textContent: wasWrong ? "This is not the token." : (error ?? "") });
}

async function poll() {
  try {
    const answer = await fetched("/api/v1/state");
    const body = await answer.json().catch(() => ({}));
    if (answer.status === 401) {
      const wasWrong = sessionStorage.getItem(TOKEN) !== null;
      sessionStorage.removeItem(TOKEN);
      if ($("sign-in").hidden || wasWrong) signedOut(wasWrong);
    } else if (!answer.ok) {
      tell(body.error ?? `The server answered ${answer.status}.`);
    } else {
      set($("sign-in"), { hidden: true });
      set($("main"), { hidden: false, className: "" });
      lastSeen = Date.now();
      show(body);
      if (performance.now() > toldUntil) set($("banner"), { hidden: true });
    }
  } catch {
    set($("main"), { className: "stale" });
    tell(lastSeen ? `Not reachable since ${clock(lastSeen)}. What is shown is from then.` : "The server is not reachable.");
  }
}

async function run() {
  for (;;) {
    if (!document.hidden) await poll();
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

// ---- controls -------------------------------------------------------------------------------------------------------------------

function theme(choice) {
  if (choice) document.documentElement.dataset.theme = choice;
}

theme(localStorage.getItem(THEME));
$("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" || (getComputedStyle(document.documentElement).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  const next = isDark ? "light" : "dark";
  localStorage.setItem(THEME, next);
  theme(next);
});
$("filter").addEventListener("input", () => history.length && showRooms(history.at(-1).state));
$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  $("token").value = "";
  poll();
});
run();
