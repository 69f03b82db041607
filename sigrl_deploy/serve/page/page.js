// The page of `sigrl-deploy serve`: its pictures, labels and slider.

import { Card } from "./card.js";
import { call, service } from "./service.js";

const USUAL = 5; // tags of a picture, on average, until somebody moves the slider
const FEW = 10; // labels, as in the library's advice
const OWN = ""; // in place of a vocabulary's name

const $ = (id) => document.getElementById(id);
const slider = { chosen: null, value: -Infinity, digits: 2 }; // `chosen` is null until somebody moves it
let cards = [];
let ready; // a promise: what the service offers is shown
let due = false; // something changed that the page does not show yet

// All pictures

function add(files) {
  const added = [...files].map((file) => new Card(file, { question, slider, changed: refresh, removed: remove }));
  cards = [...added, ...cards];
  $("cards").prepend(...added.map((card) => card.root));
  for (const card of added) card.tag();
}

function remove(card) {
  const next = cards[cards.indexOf(card) + 1] ?? cards[cards.indexOf(card) - 1];
  discard([card]);
  (next?.root.querySelector(".remove") ?? $("files")).focus();
}

function discard(gone) {
  cards = cards.filter((card) => !gone.includes(card));
  for (const card of gone) {
    card.abort.abort();
    URL.revokeObjectURL(card.picture.src);
    card.root.remove();
  }
  refresh();
}

function tagAll() {
  slider.chosen = null;
  for (const card of cards) card.tag();
}

function refresh() {
  if (!due) queueMicrotask(draw);
  due = true;
}

function draw() {
  due = false;
  setSlider(cards.flatMap((card) => card.tags ?? []).map((tag) => tag.score).sort((a, b) => b - a));
  for (const card of cards) card.draw();
  const failed = cards.filter((card) => card.error).length;
  const tagged = cards.filter((card) => card.tags).length;
  const busy = tagged + failed < cards.length;
  $("found").hidden = cards.length === 0;
  $("state").textContent = `${tagged} of ${cards.length} ${cards.length === 1 ? "picture" : "pictures"} tagged` +
    `${failed ? `, ${failed} failed` : ""}${busy ? " …" : "."}`;
}

// Scores mean something within one vocabulary only, so the slider's range and first place follow from those that came.
function setSlider(scores) {
  const input = $("threshold");
  input.disabled = scores.length === 0;
  if (scores.length === 0) return;
  const [highest, lowest] = [scores[0], scores[scores.length - 1]];
  slider.digits = highest - lowest < 0.2 ? 3 : 2;
  const step = 10 ** -slider.digits;
  const down = (score) => Math.floor(score / step + 1e-6) * step;
  const pictures = cards.filter((card) => card.tags?.length);
  const decided = pictures.every((card) => card.asked.thresholds);
  const usual = decided ? lowest : scores[Math.min(USUAL * pictures.length, scores.length) - 1];
  Object.assign(input, { min: down(lowest).toFixed(slider.digits), max: (down(highest) + step).toFixed(slider.digits) });
  input.step = step;
  input.value = (slider.chosen ?? down(usual)).toFixed(slider.digits);
  slider.value = Number(input.value);
  const shown = scores.filter((score) => score >= slider.value).length / pictures.length;
  const text = `${slider.value.toFixed(slider.digits)}, ${shown.toFixed(1)} tags a picture`;
  $("threshold-text").textContent = text;
  input.setAttribute("aria-valuetext", text);
}

// Labels

const chosenVocabulary = () => service.vocabularies.find(({ name }) => name === $("vocabulary").value);

function ownLabels() {
  const lines = $("labels").value.split("\n").map((line) => line.trim());
  return [...new Set(lines.filter((line) => line && !line.startsWith("#")))];
}

// What the service is asked for besides the picture.
async function question() {
  await ready;
  if ($("vocabulary").length === 0) throw new Error("The service is not ready.");
  const name = $("vocabulary").value;
  if (name !== OWN) {
    const thresholds = chosenVocabulary()?.thresholds && $("thresholds").checked;
    return { vocabulary: name, thresholds: Boolean(thresholds) };
  }
  const labels = ownLabels();
  if (labels.length === 0) throw new Error("There are no labels yet. Write some, one a line, or choose others.");
  return { labels: JSON.stringify({ labels, ...($("common").checked ? { background: "common" } : {}) }) };
}

function drawLabels() {
  const own = $("vocabulary").length > 0 && $("vocabulary").value === OWN;
  const count = ownLabels().length;
  const few = count > 0 && count < FEW && !$("common").checked;
  $("own").hidden = !own;
  $("copy").hidden = own || !service.openLabels;
  $("decide").hidden = !chosenVocabulary()?.thresholds;
  $("labels-hint").textContent = `${count} ${count === 1 ? "label" : "labels"}` +
    `${few ? ". With so few, even a wrong one may score high." : ". Lines that begin with # are left out."}`;
}

async function copyLabels() {
  try {
    const { label_set } = await call(`v1/vocabularies/${encodeURIComponent($("vocabulary").value)}`);
    const kept = label_set.labels.filter((label) => label.emit !== false);
    $("labels").value = kept.map((label) => label.name ?? label).join("\n");
  } catch (error) {
    return complain(error.message);
  }
  $("vocabulary").value = OWN;
  drawLabels();
  $("labels").focus();
}

// The service

service.refusesKey = function askForKey(refused) {
  $("docs").hidden = true; // a browser sends no key for it
  if (refused) $("key-hint").textContent = "The service refused this key. Enter another one.";
  sessionStorage.removeItem("key");
  if ($("key").hidden) {
    $("key").hidden = false;
    $("key-text").focus();
  }
};

function complain(message) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}

async function start() {
  try {
    const info = await call("info");
    const { vocabularies, default_vocabulary: usual, heatmaps, open_labels: openLabels, limits } = info;
    Object.assign(service, { vocabularies, heatmaps, openLabels, mostBytes: limits.body_bytes });
    const options = vocabularies.map(({ name, labels }) => new Option(`${name} (${labels} labels)`, name));
    if (openLabels) options.push(new Option("labels of your own", OWN));
    $("vocabulary").replaceChildren(...options);
    $("vocabulary").value = usual ?? vocabularies[0]?.name ?? OWN;
    $("map-hint").hidden = !heatmaps;
    $("about").textContent = `${info.name} ${info.version} · ${info.engine}`;
    complain("");
  } catch (error) {
    complain($("key").hidden ? `${error.message} Reload the page to try again.` : "");
  }
  drawLabels();
}

async function useKey(event) {
  event.preventDefault();
  sessionStorage.setItem("key", $("key-text").value.trim());
  $("key-text").value = "";
  $("key").hidden = true;
  ready = start();
  await ready;
  for (const card of cards.filter((each) => each.error)) card.tag();
}

const filesIn = (transfer) => [...(transfer?.files ?? [])];

addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", (event) => {
  document.body.classList.remove("over");
  if (filesIn(event.dataTransfer).length === 0) return;
  event.preventDefault();
  add(filesIn(event.dataTransfer));
});
addEventListener("paste", (event) => {
  if (filesIn(event.clipboardData).length === 0) return;
  event.preventDefault();
  add(filesIn(event.clipboardData));
});
$("files").addEventListener("change", ({ target }) => { add(target.files); target.value = ""; });
$("threshold").addEventListener("input", ({ target }) => { slider.chosen = Number(target.value); refresh(); });
$("vocabulary").addEventListener("change", ({ target }) => { drawLabels(); if (target.value !== OWN) tagAll(); });
$("thresholds").addEventListener("change", tagAll);
$("common").addEventListener("change", drawLabels);
$("labels").addEventListener("input", drawLabels);
$("labels").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.ctrlKey) tagAll(); });
$("apply").addEventListener("click", tagAll);
$("copy").addEventListener("click", copyLabels);
$("clear").addEventListener("click", () => { discard(cards); $("files").focus(); });
$("key").addEventListener("submit", useKey);
ready = start();
