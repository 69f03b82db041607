// The page of `sigrl-deploy serve`: its pictures, labels and slider.

import { Card, TAGS } from "./card.js";
import { onKey } from "./key.js";
import { aboutCopy, copyLabels, countTags, hasThresholds, ownLabels } from "./labels.js";
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

function addChosen() {
  add($("files").files);
  $("files").value = "";
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
  const asked = JSON.stringify(options());
  for (const card of cards) card.draw(asked);
  const stale = cards.filter((card) => card.stale).length;
  const failed = cards.filter((card) => card.error).length;
  const tagged = cards.filter((card) => card.tags).length;
  const busy = tagged + failed < cards.length;
  $("found").hidden = cards.length === 0;
  $("state").textContent = `${tagged} of ${cards.length} ${cards.length === 1 ? "picture" : "pictures"} tagged` +
    `${stale ? `, ${stale} by other labels than those above` : ""}${failed ? `, ${failed} failed` : ""}${busy ? " …" : "."}`;
}

// Scores mean something within one vocabulary only, so the slider's range and first place follow from those that came.
function setSlider(scores) {
  const input = $("threshold");
  input.disabled = scores.length === 0;
  if (input.disabled) return describeSlider("no tags yet");
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
  describeSlider(`${slider.value.toFixed(slider.digits)}, ${shown.toFixed(1)} tags a picture`);
}

function describeSlider(text) {
  $("threshold-text").textContent = text;
  $("threshold").setAttribute("aria-valuetext", text);
}

// Labels

const chosenVocabulary = () => service.vocabularies.find(({ name }) => name === $("vocabulary").value);

// What the service is asked for besides the picture; null where there is nothing to look for.
function options() {
  const name = $("vocabulary").value;
  const own = name === OWN ? ownLabels() : null;
  if (name === OWN && !own) return null;
  const decided = own ? hasThresholds(own) : chosenVocabulary()?.thresholds;
  const thresholds = Boolean(decided && $("thresholds").checked);
  return own ? { labels: JSON.stringify(own), ...(decided ? { thresholds } : {}) } : { vocabulary: name, thresholds };
}

async function question() {
  await ready;
  if ($("vocabulary").length === 0) throw new Error("The service is not ready.");
  const asked = options();
  if (!asked) throw new Error("There are no labels yet. Write some, one a line, or choose others.");
  return asked;
}

function drawLabels() {
  const isOwn = $("vocabulary").length > 0 && $("vocabulary").value === OWN;
  const own = ownLabels();
  const count = countTags(own);
  const few = count > 0 && own.labels.length < FEW && !own.background;
  $("own").hidden = !isOwn;
  $("copy").hidden = isOwn || !service.openLabels;
  $("decide").hidden = !(isOwn ? hasThresholds(own) : chosenVocabulary()?.thresholds);
  $("labels-hint").textContent = `${count} ${count === 1 ? "label" : "labels"}` +
    `${few ? ". With so few, even a wrong one may score high." : ". Lines that begin with # are left out."}`;
  $("copy-hint").textContent = aboutCopy(own);
  refresh();
}

async function editCopy() {
  try {
    copyLabels(await call(`v1/vocabularies/${encodeURIComponent($("vocabulary").value)}`));
  } catch (error) {
    return complain(error.message);
  }
  $("vocabulary").value = OWN;
  drawLabels();
  $("labels").focus();
}

// The service

function complain(message) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}

async function start() {
  try {
    const info = await call("info");
    const { vocabularies, default_vocabulary: usual, heatmaps, open_labels: openLabels, limits } = info;
    Object.assign(service, { vocabularies, heatmaps, openLabels, mostBytes: limits.body_bytes });
    const choices = vocabularies.map(({ name, labels }) => new Option(`${name} (${labels} labels)`, name));
    if (openLabels) choices.push(new Option("labels of your own", OWN));
    $("vocabulary").replaceChildren(...choices);
    $("vocabulary").value = usual ?? vocabularies[0]?.name ?? OWN;
    $("map-hint").hidden = !heatmaps;
    if (info.probabilities) $("score-hint").textContent = "A number is the probability that the picture shows the tag.";
    $("about").textContent = `${info.name} ${info.version} · ${info.engine}`;
    complain("");
  } catch (error) {
    complain($("key").hidden ? `${error.message} Reload the page to try again.` : "");
  }
  drawLabels();
}

async function startAgain() {
  ready = start();
  await ready;
  for (const card of cards.filter((each) => each.error)) card.tag();
}

// A folder that is dropped comes as a file that cannot be read.
function filesIn(transfer) {
  const items = [...(transfer?.items ?? [])].filter(({ kind }) => kind === "file");
  const isFolder = items.map((item) => Boolean(item.webkitGetAsEntry?.()?.isDirectory));
  return [...(transfer?.files ?? [])].map((file, i) => Object.assign(file, { isFolder: isFolder[i] }));
}

addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
for (const [kind, carrier] of [["drop", "dataTransfer"], ["paste", "clipboardData"]]) {
  addEventListener(kind, (event) => {
    document.body.classList.remove("over");
    const files = filesIn(event[carrier]);
    if (files.length === 0) return;
    event.preventDefault();
    add(files);
  });
}
$("files").addEventListener("change", addChosen);
$("threshold").addEventListener("input", ({ target }) => { slider.chosen = Number(target.value); refresh(); });
$("vocabulary").addEventListener("change", ({ target }) => { drawLabels(); if (target.value !== OWN) tagAll(); });
$("thresholds").addEventListener("change", tagAll);
$("background").addEventListener("change", drawLabels);
$("labels").addEventListener("input", drawLabels);
$("labels").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.ctrlKey) tagAll(); });
$("apply").addEventListener("click", tagAll);
$("copy").addEventListener("click", editCopy);
$("clear").addEventListener("click", () => { discard(cards); $("files").focus(); });
onKey(startAgain);
$("most").textContent = TAGS;
ready = start();
if ($("files").files.length > 0) addChosen(); // somebody was faster than this script
