"use strict";
// Text of models goes on the page by textContent alone.
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filters");
const list = document.getElementById("episodes");
const more = document.getElementById("more");
const PAGE = 50;
const QUIET = 2000;  // milliseconds after somebody filled in a field
let found = [];
let numShown = 0;

// A turn's number follows from its parents, who come first.
for (const episode of data.episodes) {
  episode.turns = [];
  for (const [parent] of episode.nodes) episode.turns.push(parent < 0 ? 1 : episode.turns[parent] + 1);
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function failed(episode, place) {
  const score = episode.nodes[place][3];
  return score !== null && score >= data.thresholds[episode.run];
}

// Without a success, a score that is missing leaves it open.
function outcome(episode, places) {
  if (places.some((place) => failed(episode, place))) return "success";
  return places.some((place) => episode.nodes[place][3] === null) ? "unknown" : "none";
}

function matches(episode, wanted) {
  if (wanted.run && episode.run !== Number(wanted.run)) return false;
  if (wanted.source && (episode.source === "held-out") !== (wanted.source === "held-out")) return false;
  const places = episode.nodes.map((_, place) => place).filter((place) => !wanted.turn || episode.turns[place] === Number(wanted.turn));
  if (places.length === 0) return false;
  if (wanted.outcome && wanted.outcome !== outcome(episode, places)) return false;
  if (wanted.score && !places.some((place) => episode.nodes[place][3] !== null && episode.nodes[place][3] >= Number(wanted.score))) return false;
  if (!wanted.words) return true;
  const words = wanted.words.toLowerCase();
  return [episode.goal, episode.prompt, ...places.flatMap((place) => episode.nodes[place].slice(1, 3))].some((text) => text.toLowerCase().includes(words));
}

function turnElement(episode, place) {
  const [, probe, response, score, details] = episode.nodes[place];
  const made = element("div", "turn");
  made.append(element("div", "who", `turn ${episode.turns[place]}, tester`), element("div", "said", probe));
  const head = element("div", "who", "target, score ");
  head.append(element("b", failed(episode, place) ? "failed" : "", score === null ? "unknown" : score.toFixed(3)));
  const notes = Object.entries(details).map(([name, value]) => `${name} ${value}`).join(", ");
  made.append(head, element("div", "said", response), element("div", "who", notes));
  episode.nodes.forEach(([parent], child) => { if (parent === place) made.append(turnElement(episode, child)); });
  return made;
}

// What identifies an episode after the page has been reloaded.
function keyOf(episode) {
  return `${episode.run} ${episode.source} ${episode.episode}`;
}

function unfold(made, episode) {
  if (made.childElementCount > 1) return;
  episode.nodes.forEach(([parent], place) => { if (parent < 0) made.append(turnElement(episode, place)); });
}

function episodeElement(episode) {
  const made = element("details", "episode");
  made.dataset.key = keyOf(episode);
  const summary = element("summary");
  const worst = episode.worst === null ? "no score" : `worst score ${episode.worst.toFixed(3)}`;
  const hit = episode.nodes.some((_, place) => failed(episode, place));
  if (episode.goal) summary.append(element("span", "goal", `goal: ${episode.goal}`), element("br"));
  if (episode.prompt || !episode.goal) summary.append(element("span", "prompt", episode.prompt), element("br"));
  const run = data.runs.length > 1 ? `${data.runs[episode.run]}, ` : "";
  summary.append(element("small", hit ? "failed" : "", `${run}${episode.source}, ${episode.nodes.length} turns, ${worst}`));
  made.append(summary);
  made.addEventListener("toggle", () => { if (made.open) unfold(made, episode); });
  return made;
}

function showMore() {
  list.append(...found.slice(numShown, numShown + PAGE).map(episodeElement));
  numShown = Math.min(numShown + PAGE, found.length);
  more.hidden = numShown === found.length;
}

function show() {
  const wanted = Object.fromEntries(new FormData(form));
  found = data.episodes.filter((episode) => matches(episode, wanted));
  numShown = 0;
  list.replaceChildren();
  showMore();
  document.getElementById("count").textContent = `${found.length} episodes match`;
}

// A link to the page may say what to show: report.html#outcome=success&turn=2
for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
  const field = form.elements.namedItem(name);
  if (field) field.value = value;
}
form.addEventListener("input", () => {
  const wanted = [...new FormData(form)].filter(([, value]) => value);
  history.replaceState(history.state, "", `#${new URLSearchParams(wanted)}`);
  show();
});
form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", showMore);
show();
if (data.renewed_every !== null) followRun();
else if (history.state !== null) goTo(history.state);

// --- The page of a run in progress reloads itself, and keeps the reader's place ---

function followRun() {
  const pause = document.getElementById("pause");
  let paused = history.state !== null && history.state.paused;
  const showPause = () => { pause.textContent = paused ? "Continue" : "Pause"; };
  pause.addEventListener("click", () => { paused = !paused; showPause(); });
  showPause();
  history.scrollRestoration = "manual";
  if (history.state !== null) goTo(history.state);
  addEventListener("pagehide", () => history.replaceState(placeNow(paused), ""));
  let chosen = 0;
  for (const name of ["input", "keydown", "pointerdown"]) form.addEventListener(name, () => { chosen = Date.now(); });
  let due = Date.now() + data.renewed_every * 1000;
  setInterval(() => {
    // Not while somebody fills in a field, marks text to copy, or looks elsewhere.
    const busy = Date.now() - chosen < QUIET || !getSelection().isCollapsed || document.hidden;
    if (paused || busy || Date.now() < due) return;
    due = Infinity;
    history.replaceState(placeNow(paused), "");
    location.reload();
  }, 250);
}

// What is unfolded, how much is listed, and which episode is uppermost, or how far the page is scrolled.
function placeNow(paused) {
  const uppermost = [...list.children].find((one) => one.getBoundingClientRect().bottom > 0);
  const top = uppermost ? uppermost.getBoundingClientRect().top : innerHeight;
  return {
    paused,
    numShown,
    unfolded: [...list.children].filter((one) => one.open).map((one) => one.dataset.key),
    settings: [...document.querySelectorAll("details.card")].map((one) => one.open),
    uppermost: top < innerHeight / 2 ? { key: uppermost.dataset.key, top } : null,
    scrolled: scrollY,
    field: form.contains(document.activeElement) ? document.activeElement.name : "",
  };
}

function goTo(place) {
  while (numShown < Math.min(place.numShown, found.length)) showMore();
  const byKey = new Map(found.slice(0, numShown).map((episode, index) => [keyOf(episode), index]));
  for (const key of place.unfolded) {
    if (!byKey.has(key)) continue;
    const made = list.children[byKey.get(key)];
    unfold(made, found[byKey.get(key)]);  // now, as its toggle comes too late for the place
    made.open = true;
  }
  document.querySelectorAll("details.card").forEach((one, index) => { one.open = Boolean(place.settings[index]); });
  const field = place.field ? form.elements.namedItem(place.field) : null;
  if (field) field.focus({ preventScroll: true });
  scrollTo(0, place.scrolled);
  if (place.uppermost === null || !byKey.has(place.uppermost.key)) return;
  const now = list.children[byKey.get(place.uppermost.key)].getBoundingClientRect().top;
  scrollBy(0, now - place.uppermost.top);
}
