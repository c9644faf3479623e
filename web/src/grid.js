// The tiles: one for each participant, one more for each shared screen.

const tiles = new Map();
const grid = document.querySelector("#grid");

function layOut() {
  const count = tiles.size;
  const isWide = innerWidth > innerHeight;
  const columns = isWide ? Math.ceil(Math.sqrt(count)) : count > 4 ? 2 : 1;
  grid.style.setProperty("--columns", String(Math.max(1, columns)));
}

addEventListener("resize", layOut);

function initials(name) {
  const words = name.trim().split(/\s+/);
  return ((words[0]?.[0] ?? "?") + (words.length > 1 ? words.at(-1)[0] : "")).toUpperCase();
}

function hue(text) {
  return [...text].reduce((h, c) => (h * 31 + c.codePointAt(0)) % 360, 7);
}

/** The tile of a participant's camera or screen; made when it is first asked for. */
export function tile(participant, kind = "camera") {
  const key = `${participant.identity}/${kind}`;
  let element = tiles.get(key);
  if (!element) {
    const name = participant.name || participant.identity;
    element = document.createElement("article");
    element.className = "tile unseen-video";
    element.setAttribute("role", "listitem");
    element.classList.toggle("own", participant.isLocal);
    element.style.setProperty("--hue", String(hue(participant.identity)));
    const face = document.createElement("div");
    face.className = "initials";
    face.textContent = initials(name);
    const caption = document.createElement("div");
    caption.className = "caption";
    for (const part of ["who", "way", "figures"]) caption.append(Object.assign(document.createElement("span"), { className: part }));
    const who = caption.querySelector(".who");
    who.append(Object.assign(document.createElement("i"), { className: "muted-mark", title: "muted" }));
    who.append(kind === "screen" ? `${name}'s screen` : participant.isLocal ? `${name} (you)` : name);
    element.append(face, caption);
    tiles.set(key, element);
    grid.append(element);
    layOut();
  }
  return element;
}

export function removeTile(participant, kind) {
  for (const [key, element] of tiles) {
    if (key === `${participant.identity}/${kind}` || (!kind && key.startsWith(`${participant.identity}/`))) {
      element.remove();
      tiles.delete(key);
    }
  }
  layOut();
}

export function removeAllTiles() {
  tiles.clear();
  grid.replaceChildren();
}

/** Shows a track in its tile. */
export function show(participant, track, kind) {
  const element = tile(participant, kind);
  const media = track.attach();
  if (track.kind === "video") {
    media.className = kind;
    media.playsInline = true;
    element.querySelector("video")?.remove();
    element.prepend(media);
    element.classList.remove("unseen-video");
  } else {
    element.append(media);
  }
}

export function hideVideo(participant, kind = "camera") {
  tiles.get(`${participant.identity}/${kind}`)?.classList.add("unseen-video");
}

export function showVideo(participant, kind = "camera") {
  const element = tiles.get(`${participant.identity}/${kind}`);
  if (element?.querySelector("video")) element.classList.remove("unseen-video");
}

export function mark(participant, state) {
  const element = tile(participant);
  for (const [name, on] of Object.entries(state)) element.classList.toggle(name, on);
}

/** Path and figures below a name. */
export function caption(participant, way, figures) {
  const element = tile(participant);
  element.querySelector(".way").textContent = way ?? "";
  element.querySelector(".figures").textContent = figures;
}
