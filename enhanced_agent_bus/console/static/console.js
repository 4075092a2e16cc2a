// What a page does by itself: it asks for what is new, opens a record in the drawer, and is used by keyboard.
// All markup comes from the console's own templates; nothing here makes markup of what the log says.
"use strict";

const ROWS_MAX = 400;
const ASK_MS = 2000;
const drawer = document.getElementById("drawer");
let after = Number(document.body.dataset.after);
let opener = null;

function parsed(html, tag) {
  const frame = document.createElement("template");
  frame.innerHTML = tag ? `<table><tbody>${html}</tbody></table>` : html;
  return frame.content;
}

function swap(id, html) {
  const place = document.getElementById(id);
  if (place && place.dataset.html !== html) {
    place.dataset.html = html;
    place.replaceChildren(parsed(html));
  }
}

// --- following -------------------------------------------------------------------------------------------------

function follows() {
  const box = document.getElementById("following");
  return box !== null && box.checked;
}

function say(text) {
  const place = document.getElementById("follow");
  if (place) place.textContent = text;
}

function prepend(html, more) {
  const body = document.querySelector("#list table.log tbody");
  const rows = [...parsed(html, true).querySelectorAll("tr")];
  if (!body || rows.length === 0) return;
  document.getElementById("empty")?.remove();
  if (more) body.replaceChildren();  // there is a gap: what was shown is reached by "Older"
  rows.forEach((row) => row.classList.add("new"));
  body.prepend(...rows);
  while (body.rows.length > ROWS_MAX) body.lastElementChild.remove();
}

async function ask() {
  if (document.hidden || !document.body.dataset.view) return;
  const held = follows() ? "" : "&top=1";
  const answer = await fetch(`/news?view=${encodeURIComponent(document.body.dataset.view)}&after=${after}${held}`);
  if (answer.status === 410 || answer.status === 401) {
    delete document.body.dataset.view;
    say("This page no longer follows: load it again.");
    return;
  }
  if (!answer.ok) return;
  const news = await answer.json();
  swap("banner", news.banner);
  swap("standing", news.standing);
  if (news.rows !== undefined) {
    prepend(news.rows, news.more);
    after = news.after;
  }
}

async function asking() {
  try {
    await ask();
  } catch {
    swap("standing", "the console does not answer");
  }
  setTimeout(asking, ASK_MS);
}
if (document.body.dataset.view) setTimeout(asking, ASK_MS);

// --- the drawer ------------------------------------------------------------------------------------------------

async function explain(link) {
  const address = new URL(link.href);
  address.searchParams.set("part", "1");
  const answer = await fetch(address);
  const close = document.createElement("button");
  close.className = "close";
  close.textContent = "Close";
  close.addEventListener("click", shut);
  const whole = document.createElement("a");
  whole.href = link.href;
  whole.textContent = "Open as a page";
  const last = document.createElement("p");
  last.append(whole);
  drawer.replaceChildren(close, parsed(await answer.text()), last);
  document.querySelectorAll("tr.chosen").forEach((row) => row.classList.remove("chosen"));
  link.closest("tr")?.classList.add("chosen");
  if (!drawer.contains(link)) opener = link;
  drawer.hidden = false;
  drawer.scrollTop = 0;
  drawer.focus();
}

function shut() {
  drawer.hidden = true;
  drawer.replaceChildren();
  opener?.focus();
}

document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const link = event.target.closest("a[href]");
  const row = event.target.closest("table.log tbody tr");
  const wanted = link ? (link.hasAttribute("data-drawer") ? link : null) : row?.querySelector("a.open");
  if (!wanted || !drawer || window.getSelection()?.toString()) return;
  event.preventDefault();
  explain(wanted).catch(() => { window.location.href = wanted.href; });
});

// --- the keyboard ----------------------------------------------------------------------------------------------

function step(by) {
  const links = [...document.querySelectorAll("#list table.log a.open")];
  const here = links.indexOf(document.activeElement);
  const next = links[Math.min(links.length - 1, Math.max(0, here < 0 ? 0 : here + by))];
  next?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && drawer && !drawer.hidden) return shut();
  if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || event.metaKey || event.ctrlKey || event.altKey) return;
  if (event.key === "j") step(1);
  if (event.key === "k") step(-1);
  if (event.key === "/") {
    const search = document.getElementById("q");
    if (search) { event.preventDefault(); search.focus(); search.select(); }
  }
});

// --- the drawing -----------------------------------------------------------------------------------------------

const graph = document.querySelector("svg.graph");
function only(agent) {
  graph.classList.toggle("one", agent !== null);
  for (const its of graph.querySelectorAll(".its")) its.classList.remove("its");
  if (agent === null) return;
  const near = new Set([agent]);
  for (const edge of graph.querySelectorAll(".edge")) {
    if (edge.dataset.from === agent || edge.dataset.to === agent) {
      edge.classList.add("its");
      near.add(edge.dataset.from).add(edge.dataset.to);
    }
  }
  for (const node of graph.querySelectorAll(".node")) if (near.has(node.dataset.agent)) node.classList.add("its");
}
if (graph) {
  for (const node of graph.querySelectorAll(".node")) {
    for (const enter of ["mouseenter", "focus"]) node.addEventListener(enter, () => only(node.dataset.agent));
    for (const leave of ["mouseleave", "blur"]) node.addEventListener(leave, () => only(null));
  }
}
